"""The key of a check: a whole number, or one of JAX's keys, which is the number that reports print."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import bpref
from bpref.verify.options import seed_of

X = np.linspace(-1, 1, 3, dtype=np.float32)


def test_a_jax_key_of_either_kind_is_the_number_that_made_it():
    for seed in (0, 1, 1729, 2**31 - 1):
        assert seed_of("check", jax.random.key(seed)) == seed_of("check", jax.random.PRNGKey(seed)) == seed
    first, second = jax.random.split(jax.random.key(1))
    assert seed_of("check", first) == seed_of("check", jax.random.key_data(first)) != seed_of("check", second)
    assert seed_of("check", first) > 2**32
    assert seed_of("check", jax.random.key(3, impl="rbg")) == 3 * (2**64 + 1)
    assert seed_of("check", np.int64(5)) == seed_of("check", jnp.int32(5)) == 5
    assert 0 <= seed_of("check", None) < 10**6


def test_all_that_take_a_key_take_a_jax_key_and_print_its_number(check_gradient):
    def derived(args, dy):
        return (dy * jnp.cos(args[0]),)

    for key in (jax.random.key(7), jax.random.PRNGKey(7)):
        assert bpref.check(jnp.sin, X, backward=derived, key=key).key == 7
        assert check_gradient(jnp.sin, X, backward=derived, key=key).key == 7
        assert bpref.audit(jax.nn.relu, X, key=key).key == 7
        assert bpref.search(jnp.sin, "f32[N]", backward=derived, key=key, examples=1).key == 7
    forward = lambda x: jnp.sum(checkpoint_name(jnp.sin(x), "y"))  # noqa: E731
    ones = lambda args, dy: {"y": jnp.broadcast_to(dy, args[0].shape)}  # noqa: E731
    split = jax.random.split(jax.random.key(7))[0]
    report = bpref.check_intermediates(forward, (X,), ones, key=split)
    assert (report.ok, report.key) == (True, seed_of("check", split))
    assert f"key {report.key}\n" in str(report)


@pytest.mark.parametrize(
    ("key", "came"),
    [
        (-1, "-1"),
        (True, "True"),
        (1.0, "a float"),
        ("a", "a str"),
        (jax.random.split(jax.random.key(0), 3), "key<fry>[3]"),
        (np.zeros(3, np.uint32), "uint32[3]"),
    ],
    ids=str,
)
def test_any_other_is_refused(key, came):
    with pytest.raises(TypeError) as refused:
        seed_of("audit", key)
    expected = "expected a whole number of 0 or more, or a jax.random.key: the seed of every draw"
    assert str(refused.value) == f"audit: key is {came}, {expected}"


def test_a_traced_key_is_refused():
    with pytest.raises(TypeError, match=r"check: key is key<fry>\[\], expected a whole number of 0 or more"):
        jax.jit(lambda key: seed_of("check", key))(jax.random.key(0))

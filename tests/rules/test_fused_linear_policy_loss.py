"""fused_linear_policy_loss: beside its parts, what it never holds, and how it stands in a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import FusedLinearPolicyLossParams
from bpref.rules.preference_loss.fused_linear_policy_loss import LOSSES, OF_MEANS, OF_TOKENS
from tests.refusing import refusals
from tests.rules.sweeping import as_users_compile, backpropagate, shapes_within

pytestmark = pytest.mark.quick

N, G, T, D, V = 3, 2, 5, 4, 40
fused = bpref.fused_linear_policy_loss


def example(loss: str, dtype=np.float64, features: int = D):
    """x for a loss, labels of padding and all: answers are of 1 to T tokens."""
    rng = np.random.default_rng(0)
    axes = {"grpo": (N, G, T), "gspo": (N, G, T), "kto": (N, T), "ppo": (N, T)}.get(loss, (2, N, T))
    labels = np.where(np.arange(T) < rng.integers(1, T + 1, (*axes[:-1], 1)), rng.integers(0, V, axes), -100)
    h, gs = rng.normal(size=(*axes, features)), -rng.exponential(3.0, size=(2, *axes))
    first = 5 * gs[0][..., 0]
    beside = {
        "dpo": (first[0], first[-1]),
        "kto": (first, rng.normal(size=N), np.arange(N) % 2 == 0),
        "ppo": (gs[0], None, rng.normal(size=(N, T))),
        "grpo": (gs[0], gs[1], rng.normal(size=(N, G))),
        "gspo": (gs[0], gs[1], rng.normal(size=(N, G))),
    }
    x = (h, labels, *beside.get(loss, ()))
    return jax.tree.map(lambda v: v.astype(dtype) if v.dtype == np.float64 else v, x)


def params_of(dtype=np.float64, features: int = D):
    return FusedLinearPolicyLossParams(jnp.asarray(np.random.default_rng(1).normal(size=(V, features)), dtype), None)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_the_loss_of_the_log_probabilities_of_the_heads_logits(loss):
    """Layer by layer, with all logits: J and dJ through `linear`, `token_log_probability` and the loss, in float64."""
    with jax.enable_x64(True):
        x, params = example(loss), params_of()
        J, dparams, (dh, dlabels, *others) = backpropagate(fused(V, loss, block=7), params, x)
        h, label = x[:2]
        mask = label != -100
        z, of_linear = bpref.linear(V, bias=False).forward(params, h)
        head, judge = bpref.token_log_probability(), LOSSES[loss].make()
        g, of_head = head.forward((), (z, jnp.where(mask, label, 0)))
        if loss in OF_TOKENS:
            expected, _, (dg, *dothers) = backpropagate(judge, (), (g, *x[2:], mask))
            dothers.pop()
        else:
            answer = bpref.answer_log_probability(loss in OF_MEANS)
            a, of_answer = answer.forward((), (g, mask))
            given = (*(a if x[0].ndim == 4 else (a,)), *x[2:])
            expected, _, d = backpropagate(judge, (), given)
            count = len(given) - len(x[2:])
            da, dothers = jnp.stack(d[:2]) if count == 2 else d[0], d[count:]
            dg = answer.backward((), of_answer, da)[1][0]
        dz = head.backward((), of_head, jnp.where(mask, dg, 0))[1][0]
        wanted, wanted_dh = bpref.linear(V, bias=False).backward(params, of_linear, dz)
    assert dlabels is None
    assert [d is None for d in others] == [d is None for d in dothers]
    for came, v in zip(
        jax.tree.leaves((J, dparams.W, dh, others)),
        jax.tree.leaves((expected, wanted.W, wanted_dh, dothers)),
        strict=True,
    ):
        np.testing.assert_allclose(came, v, rtol=1e-11, atol=1e-13)


def test_the_terms_of_each_pair_have_a_cotangent_each():
    x, params = example("dpo", np.float32), params_of(np.float32)
    terms, dparams, _ = backpropagate(fused(V, "dpo", {"reduction": "none"}), params, x)
    J, dmean, _ = backpropagate(fused(V, "dpo"), params, x)
    np.testing.assert_allclose(jnp.mean(terms), J, rtol=1e-6)
    np.testing.assert_allclose(dparams.W / N, dmean.W, rtol=1e-4, atol=1e-7)


OF_ITSELF, BY_TOKENS, BY_LENGTH = None, {"normalization": "token"}, {"normalization": "constant"}


@pytest.mark.parametrize(
    ("loss", "hyper"),
    [("grpo", OF_ITSELF), ("grpo", BY_TOKENS), ("grpo", BY_LENGTH), ("gspo", {"clip": 0.2}), ("ppo", OF_ITSELF)],
    ids=str,
)
def test_a_bonus_for_entropy_is_the_mean_that_the_loss_takes_of_its_tokens(loss, hyper):
    """Beside `linear` and `token_entropy`, which have all logits; the means by hand."""
    with jax.enable_x64(True):
        x, params = example(loss), params_of()
        with_bonus = backpropagate(fused(V, loss, hyper, block=7, entropy_weight=0.3), params, x)
        without = backpropagate(fused(V, loss, hyper, block=7), params, x)
        mask = x[1] != -100
        z, of_linear = bpref.linear(V, bias=False).forward(params, x[0])
        H, of_entropy = bpref.token_entropy().forward((), z)
        kind = (hyper or {}).get("normalization", "token" if loss == "ppo" else "sequence")
        tokens, answers = mask.sum(-1, keepdims=True), mask.size // T
        w = mask / {"token": mask.sum(), "constant": mask.size, "sequence": tokens * answers}[kind]
        dz = bpref.token_entropy().backward((), of_entropy, -0.3 * jnp.asarray(w))[1]
        dparams, dh = bpref.linear(V, bias=False).backward(params, of_linear, dz)
        np.testing.assert_allclose(with_bonus[0], without[0] - 0.3 * jnp.sum(w * H), rtol=1e-12)
        np.testing.assert_allclose(with_bonus[1].W, without[1].W + dparams.W, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(with_bonus[2][0], without[2][0] + dh, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_array_of_all_logits_is_ever_made(loss):
    params, x = params_of(np.float32), example(loss, np.float32)
    jaxpr = jax.make_jaxpr(lambda p, x: bpref.backpropagate(fused(V, loss, block=4), p, x))(params, x)
    largest = max(int(np.prod(shape)) for shape in shapes_within(jaxpr.jaxpr))
    assert largest <= max(V * D, 4 * x[1].size) < V * x[1].size


def test_the_program_needs_less_memory_than_one_array_of_logits():
    shape, classes = (2, 8, 16), 8192
    x = jnp.ones((*shape, 8)), jnp.zeros(shape, int), jnp.zeros(8), jnp.zeros(8)
    layer = fused(classes, "dpo", block=256)
    params = layer.init(jax.random.key(0), x)
    program = as_users_compile(lambda p, x: bpref.backpropagate(layer, p, x)).lower(params, x).compile()
    assert program.memory_analysis().temp_size_in_bytes < 256 * classes * 4 / 4


def test_what_is_beside_h_may_be_of_a_wider_dtype():
    """A policy in bfloat16, beside log-probabilities of its reference in float32; each cotangent is of its own."""
    h, label, *beside = example("dpo", np.float32)
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), (params_of(np.float32), h))
    J, dparams, (dh, _, *others) = backpropagate(fused(V, "dpo"), half[0], (half[1], label, *beside))
    assert (J.dtype, dparams.W.dtype, dh.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    assert {d.dtype for d in others} == {jnp.dtype(jnp.float32)}


def test_it_takes_the_heads_place_in_a_network():
    """Its params are those of a network that ends in `linear`, and y the tuple of what is beside h."""
    ids = np.random.default_rng(2).integers(0, V, (2, N, T))
    _, label, *beside = example("dpo", np.float32)
    body = bpref.serial(bpref.embedding(V, D), bpref.tanh())
    J = bpref.objective(body=body, head=fused(V, "dpo", {"beta": 0.3}))
    params = J.init(jax.random.key(0), (ids, (label, *beside)))
    network = bpref.serial(body=body, head=bpref.linear(V, bias=False))
    assert jax.tree.structure(params) == jax.tree.structure(network.init(jax.random.key(0), ids))
    value, _, (_, (dlabels, *_)) = bpref.backpropagate(J, params, (ids, (label, *beside)))
    h = body.forward(params["body"], ids)[0]
    alone = fused(V, "dpo", {"beta": 0.3}).forward(params["head"], (h, label, *beside))[0]
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    assert dlabels is None


BAD_CALLS = {
    "fused_linear_policy_loss: loss is 'square', expected ...": lambda: fused(V, "square"),
    "fused_linear_policy_loss: ignored is None, expected an integer": lambda: fused(V, "dpo", ignored=None),
    "fused_linear_policy_loss: entropy_weight is -1.0, expected a number of at least 0": (
        lambda: fused(V, "ppo", entropy_weight=-1.0)
    ),
    "fused_linear_policy_loss: entropy_weight is 0.1, which 'dpo', a loss of answers, does not have": (
        lambda: fused(V, "dpo", entropy_weight=0.1)
    ),
    "dpo: beta is 0.0, expected a positive number": lambda: fused(V, "dpo", {"beta": 0.0}),
    "TypeError: fused_linear_policy_loss: x is a tuple of 2, expected a tuple (h, labels, reference_chosen, ...": (
        lambda: fused(V, "dpo").forward(params_of(np.float32), example("dpo", np.float32)[:2])
    ),
    "fused_linear_policy_loss: h has shape (1, 3, 5, 4), expected (2, *n, T, d)...": (
        lambda: fused(V, "simpo").forward(params_of(np.float32), tuple(v[:1] for v in example("simpo", np.float32)))
    ),
}


test_what_does_not_fit_is_refused_by_name = refusals(BAD_CALLS)

"""Diagnoses of a backward that is right for another dy than came: 1, its first for all of it, its mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.verify.diagnosis.diagnose import diagnose
from tests.verify.diagnosis.wrong_cotangents import Dense, is_unexplained

RNG = np.random.default_rng(0)
H, W = (RNG.normal(size=shape).astype(np.float32) for shape in ((6, 4), (5, 4)))
LABELS = RNG.integers(0, 5, 6)


def of_weights(dy: np.ndarray) -> np.ndarray:
    return np.einsum("snm,snd->smd", dy, Dense().x)


def residual(dy_used):
    """Of a dense layer's W, when its backward makes another dy of the one that comes in."""
    dense = Dense()
    wrong = dense.residual("W", of_weights(np.broadcast_to(dy_used(dense.dy), dense.dy.shape)))
    return wrong._replace(for_dys=lambda others: [of_weights(d["y"]) for d in others])


USED = {
    "ones": (np.ones_like, "ignores_dy", "does not depend on dy: it is the reference's for dy = 1"),
    "threes": (
        lambda dy: 3 * np.ones_like(dy),
        "ignores_dy",
        "does not depend on dy: it is 3.000 x the reference's for dy = 1",
    ),
    "anything fixed": (lambda dy: np.linspace(1, 2, 28).reshape(1, 7, 4), "ignores_dy", "does not depend on dy"),
    "the first row": (lambda dy: dy[:, :1], "another_dy", "the reference's with dy[0] for all of dy"),
    "the last column": (lambda dy: dy[:, :, -1:], "another_dy", "the reference's with dy[:, -1] for all of dy"),
    "the first": (lambda dy: dy[:, :1, :1], "another_dy", "the reference's with dy[0, 0] for all of dy"),
    "the mean": (
        lambda dy: dy.mean((1, 2), keepdims=True),
        "another_dy",
        "the reference's with mean(dy) for all of dy",
    ),
    "the mean of each column": (
        lambda dy: dy.mean(1, keepdims=True),
        "another_dy",
        "the reference's with mean(dy, axis 0) for all of dy",
    ),
}


@pytest.mark.parametrize(("dy_used", "kind", "detail"), USED.values(), ids=USED)
def test_another_dy(dy_used, kind, detail):
    assert diagnose(residual(dy_used)) == (kind, detail)


@pytest.mark.parametrize("dy_used", [np.abs, np.sin, lambda dy: dy[:, ::-1], lambda dy: np.maximum(dy, dy[:, :1])])
def test_what_is_made_otherwise_of_dy_is_unexplained(dy_used):
    is_unexplained(residual(dy_used))


def test_without_the_oracle_for_another_dy_it_is_still_seen_to_be_ignored():
    assert diagnose(residual(np.ones_like)._replace(for_dys=None)) == ("ignores_dy", "does not depend on dy")


def token_losses(h, w):
    return -jnp.take_along_axis(jax.nn.log_softmax(h @ w.T), jnp.asarray(LABELS)[:, None], axis=1)[:, 0]


def of_logits(h, w, dy):
    """The cotangents of h and w, and of the mean's if dy is a number."""
    dlogits = dy * (jax.nn.softmax(h @ w.T) - jax.nn.one_hot(LABELS, len(w), dtype=h.dtype))
    return dlogits @ w, dlogits.T @ h


def losses(h, w):
    """The same in NumPy."""
    z = np.asarray(h) @ np.asarray(w).T
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), LABELS]


def as_numpy(backward):
    return lambda args, dy: tuple(map(np.asarray, backward(args, dy)))


def scales_one_alone(args, dy):
    n = len(LABELS)
    return of_logits(*args, dy / n)[0], of_logits(*args, 1 / n)[1]


def takes_the_first(args, dy):
    return of_logits(*args, jnp.asarray(dy)[:1, None])


@pytest.mark.parametrize(
    ("f", "backward"),
    [
        (lambda h, w: token_losses(h, w).mean(), scales_one_alone),
        (lambda h, w: losses(h, w).mean(), as_numpy(scales_one_alone)),
    ],
    ids=["JAX", "host"],
)
def test_a_fused_loss_that_scales_dh_alone(f, backward):
    report = bpref.check(f, H, W, backward=backward, key=1)
    assert [(v.where, v.verdict) for v in report.verdicts] == [("h", "ok"), ("w", "wrong")]
    assert [(x.kind, x.detail) for x in report.findings] == [
        ("ignores_dy", "does not depend on dy: it is the reference's for dy = 1")
    ]


@pytest.mark.parametrize(
    ("f", "backward"), [(token_losses, takes_the_first), (losses, as_numpy(takes_the_first))], ids=["JAX", "host"]
)
def test_a_cotangent_of_each_token_replaced_by_the_first(f, backward):
    report = bpref.check(f, H, W, backward=backward, key=1)
    assert [(x.where, x.kind, x.detail) for x in report.findings] == [
        (where, "another_dy", "the reference's with dy[0] for all of dy") for where in "hw"
    ]


def test_the_cotangent_of_one_of_two_outputs_is_taken_for_1():
    def f(x):
        return x[:3] ** 2, x[3:] ** 2

    def backward(args, dys):
        return (2 * args[0] * jnp.concatenate([dys[0], jnp.ones_like(dys[1])]),)

    (finding,) = bpref.check(f, H, backward=backward, key=1).findings
    assert (finding.kind, finding.detail) == (
        "ignores_dy",
        "does not depend on dy[1]: it is the reference's for dy[1] = 1",
    )


def test_the_cotangent_of_one_of_two_outputs_of_a_host_function_is_taken_for_0():
    def f(x):
        return np.asarray(x) ** 2, np.sin(np.asarray(x))

    (finding,) = bpref.check(f, H, backward=lambda args, dys: (2 * args[0] * dys[0],), key=1).findings
    assert (finding.kind, finding.detail) == (
        "ignores_dy",
        "does not depend on dy[1]: it is the reference's for dy[1] = 0",
    )

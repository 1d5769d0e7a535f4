"""What is run in NumPy equation by equation is what XLA computes, to round-off; what cannot be is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpref.corpus import DERIVATIONS
from bpref.verify.programs.interpret import CannotInterpret, Interpreted
from bpref.verify.programs.quick import quick_compilation

RNG = np.random.default_rng(0)
X, M, S = RNG.normal(size=(4, 6)), RNG.normal(size=(3, 4, 4)), RNG.normal(size=())
I = np.array([3, -1, 0, 7, 2], np.int32)


def apart(f, *args) -> float:
    """The largest difference from what XLA computes, relative to each output's largest element."""
    with jax.enable_x64(True):
        traced = jax.jit(f).trace(*args)
        seen = jax.tree.leaves(jax.device_get(traced.lower().compile(quick_compilation())(*args)))
        with np.errstate(all="ignore"):
            came = Interpreted(traced.jaxpr).run(jax.tree.leaves(args))
    assert [(v.shape, v.dtype) for v in came] == [(np.shape(v), v.dtype) for v in seen]
    return max(_apart(v, w) for v, w in zip(came, seen, strict=True))


def _apart(v, w) -> float:
    if v.dtype.kind not in "fc":
        return 0.0 if np.array_equal(v, w) else np.inf
    finite = np.isfinite(w)
    if not np.array_equal(v[~finite], w[~finite], equal_nan=True):
        return np.inf
    v, w = v[finite], w[finite]
    return float(np.max(np.abs(v - w), initial=0)) / max(float(np.max(np.abs(w), initial=0)), 1e-300)


@pytest.mark.parametrize("name", DERIVATIONS)
def test_every_derivation_of_the_corpus(name):
    d = DERIVATIONS[name]
    with jax.enable_x64(True):
        args = d.make_args(np.random.default_rng(1), np.float64)
        y = jax.eval_shape(d.forward, *args)
        dy = jax.tree.map(lambda v: RNG.normal(size=v.shape), y)

    def both(args, dy):
        return d.forward(*args), [v for v in d.backward(args, dy) if v is not None]

    assert apart(both, args, dy) < 1e-13


ONE_BY_ONE = {
    "elementwise": lambda x: [
        f(x)
        for f in (jnp.abs, jnp.exp, jnp.expm1, jnp.floor, jnp.ceil, jnp.sign, jnp.tanh, jnp.sin, jnp.cos, jnp.tan)
    ]
    + [jax.nn.sigmoid(x), lax.rsqrt(x), jnp.log1p(x), jnp.sqrt(x), x**-3, x**5, jnp.round(x), lax.erf(x), x % 0.7],
    "integers": lambda i: [i // 2, i % 3, i * i, -i, i & 1, i ^ 2, ~i, i << 1, i.sum(), i.prod(), jnp.sign(i)],
    "compared": lambda x: [x > 0.1, x != x, jnp.isfinite(1 / jnp.floor(x)), (x > 0) & (x < 1), jnp.where(x > 0, x, 2)],
    "reduced": lambda x: [x.sum(0), x.prod(1), x.max(), x.min(1), x.argmax(1), x.argmin(0), (x > 0).all(0), jnp.any(x)],
    "cumulative": lambda x: [jnp.cumsum(x, 1), lax.cumprod(x, 0, reverse=True), lax.cummax(x, 1), lax.cummin(x, 0)],
    "products": lambda m: [m @ m, jnp.einsum("bij,bkj->ik", m, m), jnp.einsum("bij,bij->b", m, m), m[0] @ m[1, 0]],
    "moved": lambda x: [x.T, x[::-1, 1:5:2], jnp.roll(x, 2, 1), jnp.tile(x, 2), jnp.stack([x, x]), *jnp.split(x, 3, 1)],
    "padded": lambda x: [lax.pad(x, jnp.array(1.5), c) for c in ([(1, 2, 0), (0, 0, 2)], [(-1, 1, 0), (2, -3, 1)])],
    "gathered": lambda x, i: [
        *(x.at[i].get(mode=mode) for mode in ("clip", "fill", "promise_in_bounds")),
        x.at[:, i].get(mode="fill", fill_value=7.0),
        jnp.take_along_axis(x, jnp.abs(i[:4, None]) % 6, 1),
        jax.vmap(lambda row, k: row[k])(x, i[:4]),
        lax.dynamic_slice(x, (i[3], i[1]), (2, 3)),
    ],
    "scattered": lambda x, i: [
        *(x.at[i].add(2 * x[0], mode=mode) for mode in ("clip", "drop")),
        x.at[:, i].mul(3.0),
        x.at[1, i].max(0.3),
        x.at[2:4, 1].set(x[:2, 0]),
        x.at[i[0], i[4]].min(-9.0),
        jax.vmap(lambda row, k: row.at[k].add(1.0))(x, i[:4]),
        jax.ops.segment_sum(x, jnp.abs(i[:4]), 3),
        lax.dynamic_update_slice(x, x[:2, :3], (i[3], i[1])),
    ],
    "sorted": lambda x: [jnp.sort(x, 0), jnp.argsort(x, 1), *lax.sort((x, 2 * x), dimension=1, num_keys=1)],
    "complex": lambda z: [jnp.conj(z), jnp.abs(z), jnp.fft.fft(z), jnp.exp(z).real, z.imag, z**2, z @ z.T, z.sum(0)],
    "loops": lambda x: [
        *lax.scan(lambda c, v: (c * v + 1, c - v), jnp.zeros(6), x, reverse=True),
        lax.cond(x.sum() > 100, lambda v: v + 1, lambda v: v * 2, x),
        lax.switch(3, [lambda v: v, lambda v: -v], x),
        lax.fori_loop(0, 5, lambda n, v: v * 0.5 + n, x),
        jax.checkpoint(jnp.sin)(x),
        jax.nn.relu(x),
    ],
    "linear algebra": lambda m: [jnp.linalg.solve(m, m), jnp.linalg.inv(m), jnp.linalg.slogdet(m)[1]],
    "of nothing": lambda x: [x[:0].sum(), x[:0].max(initial=-1.0), x[:, :0] @ x[:0], jnp.sort(x[:0])],
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_every_operation(name):
    takes = {
        "integers": (I,),
        "products": (M,),
        "linear algebra": (M,),
        "complex": (X + 1j * X[::-1],),
        "gathered": (X, I),
        "scattered": (X, I),
    }
    assert apart(ONE_BY_ONE[name], *takes.get(name, (X,))) < 1e-14


def test_what_is_not_finite_is_so_where_xla_has_it():
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0])
    assert (
        apart(lambda x: [x.max(), x.min(), x.sum(), jnp.sort(x), jnp.argmax(x), jnp.log(x), 1 / x, jnp.sign(x)], odd)
        == 0
    )
    assert apart(lambda x: [jnp.maximum(x, 0), jnp.clip(x, -1, 1), x**2, x == x[::-1], x @ x, jnp.tanh(x)], odd) < 1e-15


def test_what_two_derivations_have_in_common_is_computed_once():
    with jax.enable_x64(True):
        program = jax.make_jaxpr(lambda x: jax.jit(jnp.exp)(x) * 2 + jnp.exp(x) * 2)(X)
    assert [step.primitive for step in Interpreted(program).steps] == ["exp", "mul", "add"]


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda x: x.astype(jnp.float32) * 2, "it computes with float32"),
        (lambda x: jnp.ones((5000, 5000)) * x[0, 0], "it is large"),
        (lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), "while holds programs"),
        (lambda x: jax.pure_callback(np.sin, x, x), "pure_callback is not one of NumPy's"),
        (lambda x: jax.random.normal(jax.random.key(0), x.shape) * x, "it computes with key<fry>"),
    ],
)  # fmt: skip
def test_what_is_to_be_compiled_is_refused(f, why):
    with jax.enable_x64(True), pytest.raises(CannotInterpret, match=why):
        Interpreted(jax.make_jaxpr(f)(X))

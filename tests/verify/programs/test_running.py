"""Random rounding shows what round-off can do, and leaves exact what is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpref.verify.programs.running import EPS, in_float64, jittered


def by_xla(f, args) -> np.ndarray:
    return np.asarray(jax.jit(jittered(f))(*args))


def by_numpy(f, args) -> np.ndarray:
    return in_float64(jax.jit(f).trace(*args))[1](*map(np.asarray, args))


@pytest.fixture(params=[by_xla, by_numpy])
def moved(request):
    """How far the outputs move, relatively, when every operation is rounded at random."""

    def of(f, *args) -> float:
        with jax.enable_x64(True):
            args = [jnp.asarray(v, jnp.float64) for v in args]
            plain, random = np.asarray(jax.jit(f)(*args)), request.param(f, args)
        return float(np.max(np.abs(plain - random) / np.maximum(np.abs(plain), 1e-300)))

    return of


X = np.linspace(0.3, 2.0, 7)


def test_a_well_conditioned_program_moves_by_a_few_units(moved):
    assert 0 < moved(lambda x: jnp.exp(x) * x, X) <= 8 * EPS


def test_cancellation_shows_though_no_input_moves(moved):
    """1 - tanh(x)^2 about 17: one digit of the result is sound. At a single point a draw may be what was there."""
    assert moved(lambda x: 1 - jnp.tanh(x) ** 2, np.linspace(16.0, 17.5, 7)) > 1e-3
    assert moved(lambda x: jnp.log((1 + x) - x), X * 1e8) > 0.1


def test_what_is_computed_twice_stays_equal_and_counts_stay_whole(moved):
    assert moved(lambda x: jnp.where(x * 3 == (x * 3).max(), 1.0, 0.0), X) == 0
    assert moved(lambda x: jnp.where(jnp.cumsum(jnp.ones_like(x)) == 3, 1.0, 0.0), X) == 0


@pytest.mark.parametrize("loop", ["scan", "while", "cond"])
def test_loops_are_gone_into(loop, moved):
    f = {
        "scan": lambda x: jax.lax.scan(lambda c, v: (c * v, c * v), jnp.ones(()), x)[1],
        "while": lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, x))[1],
        "cond": lambda x: jax.lax.cond(x.sum() > 0, lambda v: v * v, lambda v: v, x),
    }[loop]
    assert 0 < moved(f, X) <= 64 * EPS


def test_a_program_without_an_operation_is_run():
    with jax.enable_x64(True):
        run = in_float64(jax.jit(lambda x: x).trace(jnp.ones(2, jnp.float64)))[0]
    assert run(np.arange(2.0)).tolist() == [0.0, 1.0]

"""check of called functions, NumPy's and PyTorch's: each of its options is honoured, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import bpref  # noqa: E402
from tests.conftest import SEED  # noqa: E402
from tests.verify.torch_front import torch_functions as f  # noqa: E402
from tests.verify.written import kinds  # noqa: E402

X = np.random.default_rng(SEED).normal(size=6).astype(np.float32)
T, W = torch.from_numpy(X), torch.from_numpy(X + 1)


def cut_off(x):
    """x, in steps of 2^-40: autodiff of it is 0."""
    return x.round() * 2.0**-40


class Nothing(torch.autograd.Function):
    """x, whose backward is that of `cut_off` by autodiff."""

    @staticmethod
    def forward(ctx, x):
        return cut_off(x * 2.0**40)

    @staticmethod
    def backward(ctx, dy):
        return torch.zeros_like(dy)


def of_numpy(cross_check):
    zero = lambda args, dy: (np.zeros_like(dy),)  # noqa: E731
    reference = lambda x: cut_off(jnp.asarray(x) * 2.0**40)  # noqa: E731
    fun = lambda x: np.round(np.asarray(x) * 2.0**40) * 2.0**-40  # noqa: E731
    return bpref.check(fun, X, backward=zero, reference=reference, key=1, cross_check=cross_check)


def of_torch(cross_check):
    reference = lambda x: cut_off(x * 2.0**40)  # noqa: E731
    return bpref.check(Nothing.apply, T, reference=reference, key=1, cross_check=cross_check)


def of_torch_itself(cross_check):
    zero = lambda args, dy: (torch.zeros_like(dy),)  # noqa: E731
    return bpref.check(lambda x: cut_off(x * 2.0**40), T, backward=zero, key=1, cross_check=cross_check)


@pytest.mark.parametrize("checked", [of_numpy, of_torch, of_torch_itself])
def test_the_oracle_of_a_called_function_is_held_against_finite_differences(checked):
    assert checked(cross_check=False).ok, str(checked(cross_check=False))
    report = checked(cross_check=True)
    assert report.verdicts[-1].verdict == "cannot tell", str(report)
    assert kinds(report) == {("x", "oracle")}
    assert report.verdicts[-1].detail.startswith("at [1] the oracle says 0, finite differences ")


def test_a_right_oracle_of_a_called_function_is_ok():
    backward = lambda args, dy: (dy * np.cos(args[0]),)  # noqa: E731
    assert bpref.check(np.sin, X, backward=backward, reference=jnp.sin, key=1, cross_check=True).ok
    assert bpref.check(f.Scale.apply, T, W, reference=f.scale_naive, key=1, cross_check=True).verdict == "wrong"
    x = T.repeat(3, 1)
    assert bpref.check(f.Scale.apply, x, W, reference=f.scale_naive, key=1, cross_check=True).ok


def test_a_gradient_that_is_stopped_on_purpose_is_no_fault_of_the_oracle():
    half = lambda args, dy: (dy * args[0],)  # noqa: E731
    stopped = lambda x: x * jax.lax.stop_gradient(x)  # noqa: E731
    assert bpref.check(np.square, X, backward=half, reference=stopped, key=1, cross_check=True).ok
    for stop in (lambda x: x * x.detach(), lambda x: x * x.data, lambda x: x * without_graph(x)):
        report = bpref.check(lambda x: x * x, T, backward=half, reference=stop, key=1, cross_check=True)
        assert report.ok, str(report)
        note = next(n for n in report.notes if "the oracle says" in n)
        assert note.startswith("x: at [1] the oracle says ")
        assert note.endswith("a detach(), or a mistake in the reference")


def without_graph(x):
    with torch.no_grad():
        return x.clone()


def test_what_means_nothing_for_a_called_function_is_refused():
    backward = lambda args, dy: (dy * np.cos(args[0]),)  # noqa: E731
    with pytest.raises(ValueError) as error:
        bpref.check(np.sin, X, backward=backward, key=1, eager=True)
    assert str(error.value) == (
        "check: eager=True compares a function under jit with itself outside of it; sin is called as it is: JAX cannot "
        "trace it: it was called as a host function, with arrays"
    )
    with pytest.raises(ValueError) as error:
        bpref.check(f.Scale.apply, T, W, key=1, eager=True)
    assert str(error.value) == (
        "check: eager=True compares a function under jit with itself outside of it; Scale is PyTorch's, which is "
        "called as it is"
    )


def test_a_backward_that_clips_is_right_for_small_cotangents():
    clipped = lambda args, dy: (np.clip(dy * np.cos(args[0]), -0.01, 0.01),)  # noqa: E731
    for reference in (None, jnp.sin):
        wrong, right = (
            bpref.check(np.sin, X, backward=clipped, reference=reference, key=1, linear=linear)
            for linear in (True, False)
        )
        assert wrong.verdict == "wrong"
        assert right.ok, str(right)

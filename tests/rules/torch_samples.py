"""PyTorch's own sample inputs, given to the layers that compute the same: those with which PyTorch tests itself.

A table says of each of PyTorch's functions how a sample of it is put to a layer: a translation, called as the function
itself is called, makes of PyTorch's tensors the layer and what it is given, or says why no layer computes this. It
makes them by PyTorch's own operations, so that their adjoints carry our cotangents back to the sample's tensors.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from bpref.layer import Layer
from bpref.verify.numbers.measure import relative_error
from tests.rules.sweeping import in_one_program

EXACT = 1e-10
"""The largest relative error, in float64, of complex numbers in complex128."""

ROUND_OFF = 1e-12
"""Of numbers of the samples' size: what is nothing else beside a 0, in either, is no error."""

VERSION = "2.13"
"""Of PyTorch, whose samples the tables count."""


class Ours(NamedTuple):
    """A sample as a layer is given it.

    Attributes:
      layer: ours, as `made` makes it.
      x, params: trees of PyTorch's tensors, made of those of the sample.
      back: what makes of our output, a tree of tensors, PyTorch's: a map such as another order of the axes.
      select: which of PyTorch's outputs are compared.
      is_linear: whether `back` is; where it is not, as what makes of singular vectors numbers that their signs do not
        change, our output is made once more for it.
    """

    layer: Layer
    x: Any
    params: Any = ()
    back: Callable[[Any], Any] = lambda y: y
    select: Callable[[Any], Any] = lambda y: y
    is_linear: bool = True


Translation = Callable[..., "Ours | str"]
"""Called with what PyTorch's function is called with; gives `Ours`, or in a few words why there is no such layer."""


class Outcome(NamedTuple):
    """How many samples a layer has expressed, all of which agreed; and how many it could not, by the reason."""

    agreed: int
    reasons: Mapping[str, int] = MappingProxyType({})


class Row(NamedTuple):
    """What a table says of one of PyTorch's functions; a tolerance for one that PyTorch computes less precisely.

    Of a function with many hundreds of samples one in `every` so many is looked at. A function that reads one triangle
    of x `of_hermitian` is called with x + x^H, as PyTorch calls it where it checks its gradients.
    """

    ours: Translation
    expected: Outcome
    tolerance: float = EXACT
    every: int = 1
    of_hermitian: bool = False


Table = Mapping[str, Row]


@cache
def made(make: Callable[..., Layer], *args: Any, **hyper: Any) -> Layer:
    """A layer; the same one for the same hyperparameters, so that its sweep is traced once for a shape."""
    return make(*args, **hyper)


@cache
def _sweep(layer: Layer) -> Callable[..., Any]:
    def sweep(params, x, dy):
        y, cache = layer.forward(params, x)
        return y, layer.backward(params, cache, dy)

    return in_one_program(sweep)


@cache
def _infos() -> dict[str, Any]:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    reason = "PyTorch's samples are made with expecttest, which is not installed"
    pytest.importorskip("expecttest", reason=reason)
    from torch.testing._internal.common_methods_invocations import op_db

    return {info.full_name: info for info in op_db}


def assert_as_expected(name: str, table: Table, dtype: str = "float64") -> None:
    """Every sample of a function, of that dtype, that its layer expresses agrees, forward and backward, and they are as
    many as said.

    Another version of PyTorch has other samples: of them it is asked alone that they agree.
    """
    infos = _infos()
    import torch

    torch.manual_seed(0)
    row = table[name]
    agreed, reasons, wrong = 0, Counter(), []
    for k, sample in enumerate(infos[name].sample_inputs("cpu", getattr(torch, dtype), requires_grad=True)):
        if k % row.every:
            continue
        ours = row.ours(sample.input, *sample.args, **sample.kwargs)
        if isinstance(ours, str):
            reasons[ours] += 1
            continue
        agreed += 1
        info = infos[name]
        op = partial(info.gradcheck_wrapper, info.op) if row.of_hermitian else info.op
        errors = _errors(op, sample, ours)
        if max(errors, default=0) > row.tolerance:
            wrong.append(f"sample {k}, {sample.summary()}: {errors}")
    assert not wrong, "\n".join(wrong)
    if torch.__version__.startswith(VERSION):
        came, expected = (agreed, dict(reasons)), (row.expected.agreed, dict(row.expected.reasons))
        assert came == expected, f"{came}, expected {expected}"


def _errors(op: Callable[..., Any], sample: Any, ours: Ours) -> list[float]:
    """The relative errors of the outputs, and of the cotangents of the sample's tensors."""
    import torch

    layer = ours.layer
    tensors = [v for v in jax.tree.leaves((sample.input, *sample.args, sample.kwargs)) if isinstance(v, torch.Tensor)]
    leaves = [v for v in tensors if v.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of arguments of its own
        theirs = jax.tree.leaves(ours.select(op(sample.input, *sample.args, **sample.kwargs)))
    dy_theirs = [torch.randn_like(v) if v.requires_grad else None for v in theirs]
    d_theirs = _pulled(theirs, leaves, dy_theirs)

    given = (ours.params, ours.x)
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda v: v.detach().resolve_conj().numpy(), given)
        shapes = jax.eval_shape(layer.forward, params, x)[0]
        at = (
            jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), shapes)
            if ours.is_linear
            else layer.forward(params, x)[0]
        )
        y_like = jax.tree.map(lambda v: torch.tensor(np.array(v), requires_grad=_is_real(v)), at)
        dy = jax.tree.unflatten(
            jax.tree.structure(shapes),
            _pulled(jax.tree.leaves(ours.back(y_like)), jax.tree.leaves(y_like), dy_theirs),
        )
        # JAX's cotangent of a complex number is the conjugate of PyTorch's.
        dy = jax.tree.map(lambda v: None if v is None else np.conj(v.resolve_conj().numpy()), dy, is_leaf=_is_none)
        y, d_given = _sweep(layer)(params, x, dy)
    y = jax.tree.leaves(ours.back(jax.tree.map(lambda v: torch.tensor(np.array(v)), y)))
    outs = jax.tree.leaves(given)
    of_outs = [None if d is None else torch.tensor(np.conj(d)) for d in _spread(d_given, given)]
    d_ours = _pulled(outs, leaves, of_outs)
    pairs = [*zip(y, theirs, strict=True), *zip(d_ours, d_theirs, strict=True)]
    return [_apart(a, b) for a, b in pairs]


def _pulled(outs: list[Any], leaves: list[Any], cotangents: list[Any]) -> list[Any]:
    """The cotangents of the leaves, zeros where nothing depends on one; `None` of an output adds nothing."""
    import torch

    used = [(v, d) for v, d in zip(outs, cotangents, strict=True) if d is not None and v.requires_grad]
    wanted = [v for v in leaves if v.requires_grad]
    found = iter([None] * len(wanted))
    if used and wanted:
        of, given = zip(*used, strict=True)
        found = iter(torch.autograd.grad(of, wanted, given, allow_unused=True))
    return [_or_zeros(next(found), v) if v.requires_grad else None for v in leaves]


def _or_zeros(d: Any, like: Any) -> Any:
    return like.new_zeros(like.shape) if d is None else d


def _is_real(v: Any) -> bool:
    return np.issubdtype(v.dtype, np.inexact)


def _is_none(v: Any) -> bool:
    return v is None


def _spread(d: Any, like: Any) -> list[Any]:
    """The cotangents of the leaves of a tree, where one `None` may stand for those of a whole tree."""
    full = jax.tree.map(lambda of, v: jax.tree.map(lambda _: None, v) if of is None else of, d, like, is_leaf=_is_none)
    each = zip(jax.tree.leaves(full, is_leaf=_is_none), jax.tree.leaves(like, is_leaf=_is_none), strict=True)
    return [of for of, v in each if v is not None]


def _apart(a: Any, b: Any) -> float:
    a, b = (v.detach().resolve_conj().numpy() for v in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    if not np.issubdtype(b.dtype, np.inexact):
        return float(np.any(a != b))
    return 0.0 if np.all(np.abs(a - b) <= ROUND_OFF) else float(relative_error(a, b))

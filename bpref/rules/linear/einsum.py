"""einsum: the contraction of one array, of two or of more that an equation such as "bqhd,bkhd->bhqk" describes.

Forward. First of each operand alone: the diagonal of what has an index twice, and the sum over its lone indices, those
that stand in nothing else, neither in another operand nor in the output:

    L_nij = sum_a left_nija                   R_njk = sum_b right_kjnbb

One operand is done then. Of two, every index that is left belongs to one of four groups, told apart by where it
stands, such as in "nija,kjnbb->nik":

    group      L  R  C
    batch  n   x  x  x
    summed j   x  x
    rows   i   x     x
    columns k     x  x

    C_nik = sum_j L_nij R_njk                                             one batched matrix product

and C's axes are put in the order that the output asks for. More operands are multiplied in pairs, in the order that
takes the fewest multiplications: each C stands in the place of its L and R, and what of its indices is still asked for,
by the output or by an operand that has not had its turn, are its rows, columns and batch.

Differential: delta C_nik = sum_j (delta L_nij) R_njk + L_nij (delta R_njk). The factor of each perturbation:

    dL_nij = sum_k dC_nik R_njk               dleft_nija   = dL_nij               the shape of left
    dR_njk = sum_i dC_nik L_nij               dright_kjnbc = [b = c] dR_njk       the shape of right

each again a contraction of two arrays, with the columns, or the rows, as what is summed. A lone index stands in
neither factor: every element along it has the same cotangent, and beside the diagonal it is 0. Of several products the
last is the first whose dL and dR are taken; either of them is the dC of the product that it came of.

Complex operands: a cotangent is here, as in JAX, the factor of a perturbation in delta J = Re sum dC delta C, without a
conjugation, and all of the above holds as it stands.

Cached: L and R of every product, the operands as they came where there is nothing to be done of one alone. Arrays
without elements hold the shapes of the operands, which nothing else tells.

Numerical care: products of half-precision arrays accumulate in float32. L and R are summed in float32 and, as
every product, kept in the operands' dtype.
"""

from collections.abc import Sequence
from functools import cache as once
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Complex, Float, Inexact, Shaped

from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, no_params
from bpref.rule import Case, Real, Rule


class EinsumCache(NamedTuple):
    factors: tuple[Inexact[Array, "..."], ...]
    of_operands: tuple[Shaped[Array, "..."], ...]


class Equation(NamedTuple):
    """The indices of each operand and of the output, one character each."""

    operands: tuple[str, ...]
    output: str


class Plan(NamedTuple):
    """The pairs that are multiplied, by number, and the indices of each factor and of y.

    The operands have the first numbers; the products follow, and y is the last of them.
    """

    pairs: tuple[tuple[int, int], ...]
    indices: tuple[str, ...]


ELLIPSIS = "..."


def einsum(equation: str) -> Layer[tuple[()], Array | tuple[Array, ...], Array, EinsumCache]:
    """The contraction of the operands that `equation` names, as `jnp.einsum` defines it.

    Args:
      equation: "left,right->output", as many operands as there are, with a letter for each axis: every index of the
        output in an operand. An index that is twice in one operand stands for its diagonal. `...` stands for the axes
        that have no letter, for the last of the same ones in an operand that has fewer; they are in the output if that
        has it, and summed otherwise. Without an arrow the output is `...`, if there is one, and the letters that stand
        once, by the alphabet. Spaces mean nothing.

    Returns:
      A layer with params `()`, x the tuple of the operands, real or complex and of one dtype, and of one operand that
      array itself; y is the output in that dtype. Sizes are never broadcast: an index has one size.

    Raises:
      ValueError: the equation is not of this form; an operand has another number of axes than it says; an index has
        two sizes.
      TypeError: x is no tuple of so many; an operand is not floating-point, or two differ in dtype.
    """
    who = "einsum"
    pattern = _parse(who, equation)
    plural = len(pattern.operands) > 1
    numbers = Float[Array, "..."] | Complex[Array, "..."]
    of_x = tuple[(numbers,) * len(pattern.operands)] if plural else numbers

    def forward(params, x: of_x):  # pyright: ignore[reportInvalidTypeForm]
        operands = [jnp.asarray(v) for v in (x if plural else [x])]
        shapes = tuple(v.shape for v in operands)
        indices = _filled(who, equation, pattern, shapes)
        pairs, of = _plan(indices, shapes)
        factors = [_alone(v, *of_v) for v, *of_v in zip(operands, indices.operands, of, strict=False)]
        for left, right in pairs:
            C = _contract(factors[left], of[left], factors[right], of[right], of[len(factors)])
            factors.append(cast(C, operands[0].dtype))
        *factors, y = factors
        return y, EinsumCache(tuple(factors), tuple(map(shape_keeper, operands)))

    def backward(params, cache, dC):
        shapes = tuple(v.shape[1:] for v in cache.of_operands)
        indices = _named(pattern, tuple(map(len, shapes)))
        pairs, of = _plan(indices, shapes)
        d = {len(of) - 1: dC}
        for C, (left, right) in reversed([*enumerate(pairs, len(shapes))]):
            for one, other in ((left, right), (right, left)):
                d[one] = cast(_contract(d[C], of[C], cache.factors[other], of[other], of[one]), dC.dtype)
        dx = tuple(_spread(d[n], of[n], shapes[n], indices.operands[n]) for n in range(len(shapes)))
        return (), dx if plural else dx[0]

    return Layer(no_params, forward, backward, who)


@once
def _plan(indices: Equation, shapes: tuple[tuple[int, ...], ...]) -> Plan:
    """The products in the order that takes the fewest multiplications."""
    operands, output = indices
    if len(operands) == 1:
        return Plan((), (output,))
    of = [_not_lone(of_v, [*operands[:n], *operands[n + 1 :], output]) for n, of_v in enumerate(operands)]
    path = [(0, 1)]
    if len(of) > 2:
        sizes = dict(zip("".join(operands), sum(shapes, ()), strict=True))
        like = [np.broadcast_to(0.0, [sizes[i] for i in of_v]) for of_v in of]
        path, _ = jnp.einsum_path(f"{','.join(of)}->{output}", *like)
    pairs, waiting = [], [*range(len(of))]
    for places in path:
        left, right = (waiting[place] for place in sorted(places))
        waiting = [n for n in waiting if n not in (left, right)]
        pairs.append((left, right))
        both = [i for i in of[left] if i in of[right]]
        of_C = _not_lone("".join([*both, *of[left], *of[right]]), [*(of[n] for n in waiting), output])
        waiting.append(len(of))
        of.append(of_C if len(waiting) > 1 else output)
    return Plan(tuple(pairs), tuple(of))


def _not_lone(indices: str, elsewhere: Sequence[str]) -> str:
    """Those of the indices that stand somewhere else too, each once."""
    return "".join(dict.fromkeys(i for i in indices if any(i in part for part in elsewhere)))


def _contract(left: Array, of_left: str, right: Array, of_right: str, output: str) -> Array:
    """One batched matrix product, in at least float32; what stands in both operands is in the output or summed."""
    batch = [i for i in output if i in of_left and i in of_right]
    summed = [i for i in of_left if i in of_right and i not in output]
    rows, columns = ([i for i in output if i in of_one and i not in batch] for of_one in (of_left, of_right))
    if columns and rows and output.index(columns[0]) < output.index(rows[0]):
        left, of_left, right, of_right = right, of_right, left, of_left
    came = batch + [i for of_one in (of_left, of_right) for i in of_one if i not in batch + summed]
    axes = (_axes(summed, of_left), _axes(summed, of_right)), (_axes(batch, of_left), _axes(batch, of_right))
    C = lax.dot_general(left, right, axes, preferred_element_type=wide_dtype(left.dtype))
    return C.transpose(_axes(output, came))


def _axes(indices: Sequence[str], within: Sequence[str]) -> list[int]:
    return [within.index(i) for i in indices]


def _alone(v: Array, indices: str, kept: str) -> Array:
    """An operand's diagonal, summed over its lone indices."""
    came = [i for i in dict.fromkeys(indices) if i in kept]
    summed = [axis for axis, i in enumerate(indices) if i not in kept or indices.index(i) < axis]
    if summed:
        v = cast(lax.reduce_sum(widen(_on_diagonals(v, indices)), summed), v.dtype)
    return v.transpose(_axes(kept, came))


def _spread(v: Array, kept: str, shape: Sequence[int], indices: str) -> Array:
    """`v` along the lone indices and, with 0 beside it, on the diagonal: the adjoint of `_alone`."""
    came = [i for i in dict.fromkeys(indices) if i in kept]
    v = lax.broadcast_in_dim(v.transpose(_axes(came, kept)), shape, _axes(came, indices))
    return _on_diagonals(v, indices)


def _on_diagonals(v: Array, indices: str) -> Array:
    """0 where two axes of one index are at different places."""
    for axis, i in enumerate(indices):
        if indices.index(i) < axis:
            here, there = (lax.broadcasted_iota(jnp.int32, v.shape, k) for k in (indices.index(i), axis))
            v = jnp.where(here == there, v, 0)
    return v


def _parse(who: str, equation: str) -> Equation:
    """The parts of the equation, `...` still in them."""

    def refuse(why):
        raise ValueError(f"{who}: the equation is {equation!r}, {why}")

    if not isinstance(equation, str):
        refuse("expected a string such as 'ij,jk->ik'")
    text = equation.replace(" ", "")
    left, arrow, output = text.partition("->")
    operands = tuple(left.split(","))
    if not arrow:
        output = ELLIPSIS * (ELLIPSIS in left) + "".join(sorted(i for i in set(left) - {*".,"} if left.count(i) == 1))
    for part in (*operands, output):
        letters = part.replace(ELLIPSIS, "", 1)
        if letters and not (letters.isascii() and letters.isalpha()):
            refuse(f"expected letters and at most one '...' in {part!r}")
    twice = [i for i in output.replace(ELLIPSIS, "", 1) if output.count(i) > 1]
    if twice:
        refuse(f"the index {twice[0]!r} stands twice in the output")
    strange = [i for i in output.replace(ELLIPSIS, "", 1) if i not in left]
    if strange:
        refuse(f"the index {strange[0]!r} of the output stands in no operand")
    if ELLIPSIS in output and ELLIPSIS not in left:
        refuse("the '...' of the output stands in no operand")
    return Equation(operands, output)


def _named(pattern: Equation, ndims: Sequence[int]) -> Equation:
    """The equation with a letter beyond ASCII for each axis that `...` stands for, the last ones for fewer axes."""
    counts = [n - len(p) + len(ELLIPSIS) if ELLIPSIS in p else 0 for n, p in zip(ndims, pattern.operands, strict=True)]
    unnamed = "".join(chr(0x100 + i) for i in range(max(counts)))
    named = [
        part.replace(ELLIPSIS, unnamed[len(unnamed) - n :]) for n, part in zip(counts, pattern.operands, strict=True)
    ]
    return Equation(tuple(named), pattern.output.replace(ELLIPSIS, unnamed))


def _filled(who: str, equation: str, pattern: Equation, shapes: Sequence[tuple[int, ...]]) -> Equation:
    """The equation with every axis named; raises `ValueError` unless the operands' shapes fit it."""
    names = [f"x[{n}]" for n in range(len(shapes))] if len(shapes) > 1 else ["x"]
    for name, shape, part in zip(names, shapes, pattern.operands, strict=True):
        letters = len(part.replace(ELLIPSIS, ""))
        if len(shape) < letters or (len(shape) > letters and ELLIPSIS not in part):
            least = "at least " if ELLIPSIS in part else ""
            axes = "axis" if letters == 1 else "axes"
            raise ValueError(
                f"{who} '{equation}': {name} has shape {shape}, expected {least}{letters} {axes} for {part!r}"
            )
    indices = _named(pattern, [*map(len, shapes)])
    known: dict[str, tuple[int, str]] = {}
    for name, shape, of_v in zip(names, shapes, indices.operands, strict=True):
        for i, size in zip(of_v, shape, strict=True):
            first, by = known.setdefault(i, (size, f"{name} {shape}"))
            if size != first:
                which = repr(i) if i.isascii() else f"an axis of {ELLIPSIS!r}"
                raise ValueError(f"{who} '{equation}': {which} is {first} in {by}, {size} in {name} {shape}")
    return indices


def reference(params: tuple[()], x: Array | tuple[Array, ...], equation: str) -> Array:
    return jnp.einsum(equation, *(x if isinstance(x, tuple) else (x,)))


RULE = Rule(
    "einsum",
    einsum,
    reference,
    cases=(
        Case(
            "batched, transposed",
            (Real("b q h d"), Real("b k h d")),
            {"equation": "bqhd,bkhd->bhqk"},
            timed={"b": 4, "q": 128, "h": 4, "d": 64, "k": 128},
        ),
        Case("summed out of one operand", (Real("n i j a"), Real("k j n c")), {"equation": "nija,kjnc->kin"}),
        Case("ellipsis", (Real("B T d"), Real("d m")), {"equation": "...d,dm->...m"}),
        Case("outer product", (Real("i"), Real("j")), {"equation": "i,j->ij"}),
        Case("one operand, with a diagonal", Real("i j i a"), {"equation": "ijia->ji"}),
        Case(
            "three complex operands",
            (Real("B i", is_complex=True), Real("i j k", is_complex=True), Real("B j", is_complex=True)),
            {"equation": "bi,ijk,bj"},
        ),
    ),
    cite="Einstein, 'Die Grundlage der allgemeinen Relativitaetstheorie' (1916), section 5; numpy.einsum",
    covers=("tensordot", "matmul", "batched matrix product", "transpose", "trace"),
)

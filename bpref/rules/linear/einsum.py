"""einsum: the contraction of two arrays that an equation such as "bqhd,bkhd->bhqk" describes.

Forward. Every index of the equation belongs to one of six groups, told apart by where it stands:

    group      left  right  output        such as, in "nija,kjnb->nik"
    batch  n    x      x      x           n
    summed j    x      x                  j
    rows   i    x             x           i
    columns k          x      x           k
    lone   a    x                         a     summed out of the left operand alone
    lone   b           x                  b     summed out of the right operand alone

    L_nij = sum_a left_nija                   R_njk = sum_b right_kjnb
    C_nik = sum_j L_nij R_njk                                             one batched matrix product

and C's axes are put in the order that the output asks for.

Differential: delta C_nik = sum_j (delta L_nij) R_njk + L_nij (delta R_njk). The factor of each perturbation:

    dL_nij = sum_k dC_nik R_njk               dleft_nija  = dL_nij        the shape of left
    dR_njk = sum_i dC_nik L_nij               dright_kjnb = dR_njk        the shape of right

each again a contraction of two arrays, with the columns, or the rows, as what is summed. A lone index stands in
neither factor: every element along it has the same cotangent.

Cached: L and R, the operands as they came where there is no lone index. An array without elements holds the sizes of
the lone axes, which nothing else tells.

Numerical care: products of half-precision arrays accumulate in float32. L and R are summed in float32, and kept in
the operands' dtype.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, wide_dtype, widen
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class Operands(NamedTuple):
    left: Float[Array, "..."]
    right: Float[Array, "..."]


class EinsumCache(NamedTuple):
    L: Float[Array, "..."]
    R: Float[Array, "..."]
    left_without_elements: Float[Array, "..."]
    right_without_elements: Float[Array, "..."]


class Equation(NamedTuple):
    """The indices of the two operands and of the output, one character each."""

    left: str
    right: str
    output: str


ELLIPSIS = "..."


def einsum(equation: str) -> Layer[tuple[()], tuple[Array, Array], Reals, EinsumCache]:
    """The contraction of the two operands that `equation` names, as `jnp.einsum` defines it.

    Args:
      equation: "left,right->output", a letter for each axis: every index of the output in an operand, no index twice
        in one of them. `...` stands for the axes that have no letter, the same ones in each operand that has it;
        they are in the output if that has it, and summed otherwise. Spaces mean nothing.

    Returns:
      A layer with params `()`, x the pair `(left, right)` of one dtype, and y the output in that dtype. Sizes are
      never broadcast: an index has one size.

    Raises:
      ValueError: the equation is not of this form; an operand has another number of axes than it says; an index has
        two sizes.
      TypeError: x is no pair; an operand is not floating-point, or the two differ in dtype.
    """
    who = "einsum"
    pattern = _parse(who, equation)

    def forward(params, x: Operands):
        left, right = x
        indices = _fill(who, equation, pattern, left, right)
        of_L, of_R = _not_lone(indices)
        L, R = _summed(left, indices.left, of_L), _summed(right, indices.right, of_R)
        y = _contract(L, of_L, R, of_R, indices.output)
        return cast(y, left.dtype), EinsumCache(L, R, _without_elements(left), _without_elements(right))

    def backward(params, cache, dC):
        shapes = cache.left_without_elements.shape[1:], cache.right_without_elements.shape[1:]
        indices = _named(pattern, *map(len, shapes))
        of_L, of_R = _not_lone(indices)
        dL = _contract(dC, indices.output, cache.R, of_R, of_L)
        dR = _contract(dC, indices.output, cache.L, of_L, of_R)
        return (), (
            _repeated(cast(dL, cache.L.dtype), of_L, shapes[0], indices.left),
            _repeated(cast(dR, cache.R.dtype), of_R, shapes[1], indices.right),
        )

    return Layer(no_params, forward, backward, who)


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


def _not_lone(indices: Equation) -> tuple[str, str]:
    """The indices of L and of R: those of each operand that stand somewhere else too."""
    left, right, output = indices
    return "".join(i for i in left if i in right + output), "".join(i for i in right if i in left + output)


def _summed(v: Array, indices: str, kept: str) -> Array:
    lone = tuple(axis for axis, i in enumerate(indices) if i not in kept)
    return cast(lax.reduce_sum(widen(v), lone), v.dtype) if lone else v


def _repeated(v: Array, indices: str, shape: Sequence[int], wanted: str) -> Array:
    return lax.broadcast_in_dim(v, shape, _axes(indices, wanted))


def _without_elements(v: Array) -> Array:
    return jnp.zeros((0, *v.shape), v.dtype)


def _parse(who: str, equation: str) -> Equation:
    """The three parts of the equation, `...` still in them."""

    def refuse(why):
        raise ValueError(f"{who}: the equation is {equation!r}, {why}")

    if not isinstance(equation, str):
        refuse("expected a string such as 'ij,jk->ik'")
    text = equation.replace(" ", "")
    operands, arrow, output = text.partition("->")
    if not arrow or operands.count(",") != 1 or "," in output:
        refuse("expected two operands and an output, such as 'ij,jk->ik'")
    left, right = operands.split(",")
    parts = Equation(left, right, output)
    for part in parts:
        letters = part.replace(ELLIPSIS, "", 1)
        if letters and not (letters.isascii() and letters.isalpha()):
            refuse(f"expected letters and at most one '...' in {part!r}")
        repeated = [i for i in letters if letters.count(i) > 1]
        if repeated:
            refuse(f"the index {repeated[0]!r} stands twice in {part!r}; take the diagonal first")
    strange = [i for i in output.replace(ELLIPSIS, "", 1) if i not in operands]
    if strange:
        refuse(f"the index {strange[0]!r} of the output stands in no operand")
    if ELLIPSIS in output and ELLIPSIS not in operands:
        refuse("the '...' of the output stands in no operand")
    return parts


def _named(pattern: Equation, left_axes: int, right_axes: int) -> Equation:
    """The equation with a letter beyond ASCII for each axis that `...` stands for."""
    axes = (left_axes, right_axes)
    counts = [n - len(p) + len(ELLIPSIS) for n, p in zip(axes, pattern[:2], strict=True) if ELLIPSIS in p]
    unnamed = "".join(chr(0x100 + i) for i in range(max(counts, default=0)))
    return Equation(*(part.replace(ELLIPSIS, unnamed) for part in pattern))


def _fill(who: str, equation: str, pattern: Equation, left: Array, right: Array) -> Equation:
    """The equation with every axis named; raises `ValueError` unless the operands' shapes fit it."""
    for argument, v, part in (("left", left, pattern.left), ("right", right, pattern.right)):
        letters = len(part.replace(ELLIPSIS, ""))
        if v.ndim < letters or (v.ndim > letters and ELLIPSIS not in part):
            least = "at least " if ELLIPSIS in part else ""
            axes = "axis" if letters == 1 else "axes"
            raise ValueError(
                f"{who} '{equation}': {argument} has shape {v.shape}, expected {least}{letters} {axes} for {part!r}"
            )
    indices = _named(pattern, left.ndim, right.ndim)
    if len(indices.left) != left.ndim or len(indices.right) != right.ndim:
        raise ValueError(
            f"{who} '{equation}': '...' stands for different numbers of axes: left {left.shape}, right {right.shape}"
        )
    of_left = dict(zip(indices.left, left.shape, strict=True))
    of_right = dict(zip(indices.right, right.shape, strict=True))
    for i, size in of_left.items():
        if size != of_right.get(i, size):
            which = repr(i) if i.isascii() else f"an axis of {ELLIPSIS!r}"
            raise ValueError(
                f"{who} '{equation}': {which} is {size} in left {left.shape}, {of_right[i]} in right {right.shape}"
            )
    return indices


def reference(params: tuple[()], x: tuple[Array, Array], equation: str) -> Array:
    return jnp.einsum(equation, *x)


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
    ),
    cite="Einstein, 'Die Grundlage der allgemeinen Relativitaetstheorie' (1916), section 5; numpy.einsum",
    covers=("tensordot", "matmul", "batched matrix product"),
)

"""Named intermediates: the values that `jax.ad_checkpoint.checkpoint_name` names in a function, found and replaced."""

from collections.abc import Callable, Iterable, Sequence
from types import NotImplementedType

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jaxtyping import PyTree

from bpref.nearest import require_known
from bpref.programs import closed, is_literal, programs_in
from bpref.verify.oracle import as_cotangent, with_cotangents
from bpref.verify.programs.rewrite import CALLS, Recurse, as_it_does, evaluate, traced
from bpref.verify.programs.strip import RULES_OF_JAX, is_opaque, without_rule

OUT_OF_REACH = {
    "scan": "the body of a scan, where it has one value for each step",
    "while": "the body of a while loop, where it has one value for each step",
    "cond": "a branch of a cond or switch, which may not be taken",
}

Function = Callable[..., PyTree]


def with_names(f: Function, at_name: Callable[[str, Array], Array]) -> Function:
    """`f`, with every named value `z` replaced by `at_name(name, z)` in all that is computed from it.

    Names inside jit, remat and custom rules count, and these are inlined, rules without their derivatives; values
    named inside the bodies of loops and branches are left as they are. Called with JAX arrays, traced ones too.
    """

    def on_equation(equation: JaxprEqn, inputs: list, recurse: Recurse) -> list | NotImplementedType:
        primitive = equation.primitive.name
        if primitive == "name":
            return [at_name(equation.params["name"], inputs[0])]
        if primitive in CALLS:
            return recurse(closed(equation.params[CALLS[primitive]]), inputs)
        if primitive in RULES_OF_JAX:
            return without_rule(equation, inputs, recurse)
        return as_it_does(equation, inputs, lambda program, inputs: evaluate(program, inputs, without_rule))

    def replaced(*args):
        program, inputs, to_tree = traced(f, args, {})
        return to_tree(evaluate(program, inputs, on_equation))

    return replaced


def cut_at_names(f: Function) -> Callable[..., tuple[dict[str, Array], PyTree]]:
    """`(values, *args) -> (computed, f(*args))`: each name's value as computed, and `values[name]` used in its place.

    Every named value is thus an input and an output, and no path leads through it.
    """

    def cut(values, *args):
        computed = {}

        def at_name(name, z):
            if name not in values:
                return z
            computed[name] = z
            return values[name]

        y = with_names(f, at_name)(*args)
        return computed, y

    return cut


def shapes_of_names(f: Function, args: Sequence[PyTree], names: Iterable[str]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and dtype of each of the named values, in the order of computation."""
    wanted, found = set(names), {}

    def collect(name, z):
        if name in wanted:
            found[name] = jax.ShapeDtypeStruct(z.shape, z.dtype)
        return z

    jax.eval_shape(with_names(f, collect), *args)
    return found


def direct_uses(
    f: Function, args: Sequence[PyTree], shapes: dict[str, jax.ShapeDtypeStruct]
) -> tuple[dict[str, list[str]], set[str]]:
    """What each named value is used for without going through another one; and those used at all."""
    program, (computed, _) = jax.make_jaxpr(cut_at_names(f), return_shape=True)(shapes, *args)
    sources = {v: {name} for v, name in zip(program.jaxpr.invars, sorted(shapes), strict=False)}
    for equation in program.jaxpr.eqns:
        of_inputs = [sources.get(v, set()) for v in equation.invars if not is_literal(v)]
        sources.update(dict.fromkeys(equation.outvars, set().union(*of_inputs)))
    ends = [set() if is_literal(v) else sources.get(v, set()) for v in program.jaxpr.outvars]
    of_names = dict(zip(sorted(computed), ends, strict=False))
    uses = {name: [other for other in shapes if name in of_names.get(other, ())] for name in shapes}
    return uses, set().union(*ends)


def cotangents_of_names(f: Function, *args: PyTree) -> tuple[Array, dict[str, Array]]:
    """A scalar `f(*args)`, and its derivative with respect to every value that `f` has named.

    A value is named by `jax.ad_checkpoint.checkpoint_name(z, "Z2")`. Each derivative is that of a perturbation added to
    the value right there, all else as it was: dJ/dZ2 in the derivation's sense.
    """
    shapes: dict[str, jax.ShapeDtypeStruct] = {}

    def collect(name, z):
        shapes[name] = jax.ShapeDtypeStruct(z.shape, z.dtype)
        return z

    jax.eval_shape(with_names(f, collect), *args)

    def perturbed(perturbations):
        return with_names(f, lambda name, z: z + perturbations[name])(*args)

    J, cotangents = with_cotangents(perturbed, {name: jnp.zeros(v.shape, v.dtype) for name, v in shapes.items()})
    return J, cotangents(jnp.ones_like(J))[0]


def cotangents_by_name(
    f: Function, args: tuple, dy: PyTree, shifts: dict[str, Array], hand: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """What the cotangents of named values are, and what each would be if those after it were `hand`'s.

    Args:
      f: a function that names its values.
      args: its arguments, JAX arrays.
      dy: the cotangent of its output.
      shifts: what is added to each of the named values that are asked for, of its shape and dtype.
      hand: somebody's cotangents of some of these.

    Returns:
      The values; their cotangents; and for each name of `hand` one step of back-propagation: the derivative of
      `<dy, y>` and of `<hand[w], w>` for every w, along the paths that lead through no named value.
    """

    def shifted(shifts):
        values = {}

        def at_name(name, z):
            if name not in shifts:
                return z
            values[name] = z + shifts[name].astype(z.dtype)
            return values[name]

        y = with_names(f, at_name)(*args)
        return y, values

    (y, values), of_shifts = with_cotangents(shifted, shifts)
    nothing = jax.tree.map(jnp.zeros_like, values)
    used = {name: values[name] for name in hand}
    outputs, of_values = with_cotangents(lambda used: cut_at_names(f)(used, *args), used)
    return values, of_shifts((as_cotangent(dy, y), nothing))[0], of_values(as_cotangent((hand, dy), outputs))[0]


def require_names(f: Function, args: Sequence[PyTree], wanted: Iterable[str]) -> None:
    """Raise `ValueError` unless `f(*args)` gives each wanted name to one value, outside of loops and branches."""
    places: dict[str, list[str]] = {}
    _collect(jax.make_jaxpr(f)(*args), "", places)
    if not places:
        raise ValueError(
            "the forward names no value; name each intermediate where it is computed, and go on with what comes back: "
            'z = jax.ad_checkpoint.checkpoint_name(z, "Z2")'
        )
    for name in wanted:
        require_known("named value", name, places)
        inside = next((place for place in places[name] if place), "")
        if inside:
            raise ValueError(
                f"the value named {name!r} is in {inside}; what can be checked are names outside of it: of what goes "
                "in and of what comes out, such as the stacked values; or that function by itself, with its own "
                "arguments"
            )
        if len(places[name]) > 1:
            raise ValueError(
                f"{len(places[name])} values are named {name!r}, and a name stands for one array; give each its own "
                "(a function that is called twice names its values twice)"
            )


def _collect(program: ClosedJaxpr, inside: str, places: dict[str, list[str]]) -> None:
    for equation in program.jaxpr.eqns:
        primitive = equation.primitive.name
        if primitive == "name":
            places.setdefault(equation.params["name"], []).append(inside)
        for inner in programs_in(equation):
            _collect(inner, inside or _place(equation), places)


def _place(equation: JaxprEqn) -> str:
    """Where a value is that is named in the programs of an equation; empty if these are inlined."""
    primitive = equation.primitive.name
    if primitive in CALLS:
        return ""
    if primitive in RULES_OF_JAX:
        return "a custom rule over a kernel or callback" if is_opaque(equation.params["call_jaxpr"]) else ""
    return OUT_OF_REACH.get(primitive, f"a {primitive}, which is not looked into")

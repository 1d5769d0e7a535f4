"""Sequences in pieces: states that are handed on and their cotangents back, packed sequences, lengths of any size."""

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import (
    DeltaHeads,
    GatedHeads,
    Heads,
    HeadsAndState,
    MambaState,
    MambaSteps,
    Passed,
    ProductHeads,
    Selective,
    SelectiveHeads,
    SelfReadingHeads,
)
from bpref.layer import Layer
from bpref.rules import RULES
from tests.comparing import assert_same
from tests.refusing import refusals
from tests.rules.forms_with_states import DRAWN, FORMS, B
from tests.rules.sweeping import backpropagate, by_oracle, forward

EVERY_FORM = pytest.mark.parametrize("name", FORMS)
T = 11
IDS_OF_FOUR = np.broadcast_to(np.repeat([7, 2, 7, 1], [3, 1, 5, 2])[None], (B, T))
TAKES_NO_STEPS = [name for name in FORMS if name != "mamba_block"]


def drawn(name: str, T: int) -> tuple[Layer, Any, Any, Any]:
    """The layer that gives its state out, params, x of T steps and a cotangent of what comes out."""
    layer = getattr(bpref, name)(chunk=4, final=True, **FORMS[name].hyper)
    x = FORMS[name].x(T)
    with jax.enable_x64(True):
        params = jax.tree.map(np.asarray, layer.init(jax.random.key(1), x))
        y, _ = jax.eval_shape(layer.forward, params, x)
    return layer, params, x, jax.tree.map(lambda v: DRAWN.normal(size=v.shape), y)


def packed(x: Any, ids: Any) -> Any:
    if isinstance(x, Selective | SelectiveHeads | MambaSteps):
        return x._replace(segments=ids)
    if isinstance(x, ProductHeads):
        return x._replace(q_segments=ids)
    return x._replace(heads=x.heads._replace(q_segments=ids))


def at_steps(x: Any, steps: slice, state: Any) -> Any:
    """Those steps of x, from another state."""
    return jax.tree.map(lambda v: v[:, steps], x._replace(state=None))._replace(state=state)


def swept(layer: Layer, params: Any, x: Any, dy: Any) -> Any:
    """y, dparams and dx in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, backpropagate(layer, params, x, dy))


def zeros(tree: Any) -> Any:
    return jax.tree.map(np.zeros_like, tree)


@pytest.mark.parametrize("cut", [1, 4, 9])
@EVERY_FORM
def test_pieces_that_hand_their_state_on_are_the_whole(name: str, cut: int):
    """The second is given the first's state, the first what its cotangent turned out to be."""
    layer, params, x, dy = drawn(name, T)
    y, dparams, dx = swept(layer, params, x, dy)
    with jax.enable_x64(True):
        first = at_steps(x, slice(cut), x.state)
        middle = jax.tree.map(np.asarray, forward(layer, params, first).state)
    second = at_steps(x, slice(cut, None), middle)
    y2, dparams2, dx2 = swept(layer, params, second, Passed(dy.y[:, cut:], dy.state))
    y1, dparams1, dx1 = swept(layer, params, first, Passed(dy.y[:, :cut], dx2.state))
    assert_same(Passed(np.concatenate((y1.y, y2.y), 1), y2.state), y)
    of_steps = jax.tree.map(lambda *d: np.concatenate(d, 1), *(d._replace(state=None) for d in (dx1, dx2)))
    assert_same(of_steps._replace(state=dx1.state), dx)
    assert_same(jax.tree.map(np.add, dparams1, dparams2), dparams)


@pytest.mark.parametrize("T", [1, 3, 4, 7])
@EVERY_FORM
def test_by_steps_and_by_chunks_autodiff_says_the_same(name: str, T: int):
    """Fewer steps than a chunk has, as many, and more but no multiple; packed, from state to state."""
    layer, params, x, dy = drawn(name, T)
    x = packed(x, np.array([[0, 0, 1, 1, 1, 2, 0], [3, 1, 1, 1, 1, 1, 1]])[:, :T])
    y, dparams, dx = swept(layer, params, x, dy)
    rule = RULES[name]
    for form in filter(None, (partial(rule.reference, final=True, **FORMS[name].hyper), FORMS[name].by_chunks)):
        with jax.enable_x64(True):
            plain, (of_params, of_x) = by_oracle(form, params, x, dy=dy)
        assert_same(y, jax.tree.map(np.asarray, plain))
        for came, expected in ((dparams, of_params), (dx, of_x)):
            is_real = [np.issubdtype(v.dtype, np.floating) for v in jax.tree.leaves(expected)]
            wanted = [np.asarray(v) for v, real in zip(jax.tree.leaves(expected), is_real, strict=True) if real]
            assert_same(jax.tree.leaves(came), wanted, 1e-11)


@EVERY_FORM
def test_packed_sequences_are_each_as_if_alone(name: str):
    """The first goes on from the state, the last gives its own out: no other has a part in either."""
    layer, params, x, dy = drawn(name, T)
    y, dparams, dx = swept(layer, params, packed(x, IDS_OF_FOUR), dy)
    zero, ends = zeros(x.state), (0, 3, 4, 9, T)
    pieces = []
    for i, (start, end) in enumerate(pairwise(ends)):
        piece = at_steps(x, slice(start, end), zero if i else x.state)
        pieces.append(swept(layer, params, piece, Passed(dy.y[:, start:end], dy.state if end == T else zero)))
    assert_same(y, Passed(np.concatenate([p[0].y for p in pieces], 1), pieces[-1][0].state))
    of_steps = jax.tree.map(lambda *d: np.concatenate(d, 1), *(p[2]._replace(state=None) for p in pieces))
    expected = of_steps._replace(state=pieces[0][2].state)
    if isinstance(expected, SelfReadingHeads):  # nor is the state before
        expected.a[:, list(ends[1:-1])] = 0
    if hasattr(expected, "log_gate"):  # where a segment begins no gate is read
        expected.log_gate[:, list(ends[1:-1])] = 0
    assert_same(dx, expected, 1e-11)
    assert_same(dparams, jax.tree.map(lambda *d: sum(d), *(p[1] for p in pieces)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@EVERY_FORM
def test_what_is_not_finite_stays_within_its_packed_sequence(name: str, bad: float):
    """A gate of 0 lay between, and 0 times NaN is NaN: in every other sequence all is as with a finite number."""
    layer, params, x, dy = drawn(name, T)
    steps, tree = jax.tree.flatten((x._replace(state=None), dy.y))

    def of_steps(leaves: Any, state: Any) -> tuple[Any, Any]:
        """What there is of every step, and of the states."""
        of_x, dy_y = jax.tree.unflatten(tree, leaves)
        y, _, dx = swept(layer, params, packed(of_x._replace(state=state), IDS_OF_FOUR), dy._replace(y=dy_y))
        return (y.y, dx._replace(state=None)), (y.state, dx.state)

    def only(steps: Any, within: Any) -> Any:
        return jax.tree.map(lambda v: v[:, within], steps)

    expected, of_states = of_steps(steps, x.state)
    for i, leaf in enumerate(steps):
        spoiled = leaf.copy()
        spoiled[(0, 6, *[0] * (leaf.ndim - 2))] = bad
        came, states = of_steps([*steps[:i], spoiled, *steps[i + 1 :]], x.state)
        for others in (slice(4), slice(9, T)):
            assert_same(only(came, others), only(expected, others))
        assert_same(states, of_states)
        assert not all(np.isfinite(v).all() for v in jax.tree.leaves(only(came, slice(4, 9))))
    state = jax.tree.map(lambda v: np.where(np.arange(v.size).reshape(v.shape) == 0, bad, v), x.state)
    came, states = of_steps(steps, state)
    assert_same(only(came, slice(3, T)), only(expected, slice(3, T)))
    assert_same(states[0], of_states[0])
    assert not np.isfinite(came[0][:, :3]).all()


@pytest.mark.parametrize("name", TAKES_NO_STEPS)
def test_no_steps_hand_the_state_on_and_its_cotangent_back(name: str):
    layer, params, x, dy = drawn(name, 0)
    y, _, dx = swept(layer, params, x, dy)
    np.testing.assert_array_equal(y.state, x.state)
    np.testing.assert_array_equal(dx.state, dy.state)


@EVERY_FORM
def test_an_output_that_is_not_used_has_no_part(name: str):
    """A cotangent of `None` is that of zeros, of y or of the state; and without a state there is none of it."""
    layer, params, x, dy = drawn(name, 6)
    for part in dy._fields:
        none = swept(layer, params, x, dy._replace(**{part: None}))
        assert_same(none, swept(layer, params, x, dy._replace(**{part: zeros(getattr(dy, part))})))
    plain = getattr(bpref, name)(chunk=4, **FORMS[name].hyper)
    of_plain = swept(plain, params, x, dy.y)
    y, dparams, dx = swept(layer, params, x, Passed(dy.y, None))
    assert_same((y.y, dparams, dx), of_plain)
    alone = x.heads if isinstance(x, HeadsAndState) else x._replace(state=None)
    from_zero = swept(plain, params, x._replace(state=zeros(x.state)), dy.y)
    y, dparams, dx = swept(plain, params, alone, dy.y)
    assert jax.tree.structure(dx) == jax.tree.structure(alone)
    of_zero = from_zero[2].heads if isinstance(x, HeadsAndState) else from_zero[2]._replace(state=None)
    assert_same((y, dparams, dx), (*from_zero[:2], of_zero))


ONES = Heads(jnp.ones((2, 5, 4, 3)), jnp.ones((2, 5, 2, 3)), jnp.ones((2, 5, 2, 6)))
IDS = jnp.zeros((2, 5), int)
GATE = jnp.zeros((2, 5, 2))


def of_block(layer: Layer, state: MambaState) -> Any:
    x = jnp.ones((2, 5, 3))
    return layer.forward(layer.init(jax.random.key(0), x), MambaSteps(x, state))


def decoded(layer: Layer, x: Any) -> Any:
    decoder = bpref.decoding(layer, 9)
    params, state = bpref.begin(decoder, jax.random.key(0), x)
    return decoder.forward(params, bpref.With(x, state))


BAD_CALLS = {
    "mamba_block: state.v has shape (2, 2, 6), expected (2, 3, 6), by x (2, 5, 3)": (
        lambda: of_block(bpref.mamba_block(4, 2, 2, window=4), MambaState(jnp.ones((2, 2, 6)), jnp.ones((2, 6, 4))))
    ),
    "retention: state has shape (2, 2, 3, 5), expected (*b, K, D, E) = (2, 2, 3, 6) by heads.q (2, 5, 4, 3) and "
    "heads.k (2, 5, 2, 3) and heads.v (2, 5, 2, 6)": (
        lambda: bpref.retention().forward((), GatedHeads(ONES, GATE, jnp.ones((2, 2, 3, 5))))
    ),
    "linear_attention: state has shape (2, 2, 3, 6), expected (2, 2, 3, 7), by v (2, 5, 2, 6), of whose features "
    "there is one more as it is normalized": (
        lambda: bpref.linear_attention().forward((), HeadsAndState(ONES, jnp.ones((2, 2, 3, 6))))
    ),
    "TypeError: retention: state has dtype bfloat16, heads.q has float32; cast one to the other's": (
        lambda: bpref.retention().forward((), GatedHeads(ONES, GATE, jnp.ones((2, 2, 3, 6), jnp.bfloat16)))
    ),
    "delta_rule: kv_segments is given, expected None: keys are at the steps of queries": (
        lambda: bpref.delta_rule().forward((), DeltaHeads(ONES._replace(q_segments=IDS, kv_segments=IDS), GATE))
    ),
    "linear_attention: q_segments is given, expected None: it is not causal, so that no step begins anew": (
        lambda: bpref.linear_attention(causal=False).forward((), ONES._replace(q_segments=IDS))
    ),
    "linear_attention: x has a state, expected None: it is not causal, so that no step is the first": (
        lambda: bpref.linear_attention(causal=False).forward((), HeadsAndState(ONES, jnp.ones((2, 2, 3, 7))))
    ),
    "linear_attention: final is True, expected False: it is not causal, so that no step is the last": (
        lambda: bpref.linear_attention(causal=False, final=True)
    ),
    "TypeError: retention: x has a state, expected None: while it is decoding the state is its own": (
        lambda: decoded(bpref.retention(), GatedHeads(ONES, GATE, jnp.ones((2, 2, 3, 6))))
    ),
    "TypeError: linear_attention: x has q_segments, expected None: what is decoding goes on with one sequence": (
        lambda: decoded(bpref.linear_attention(), ONES._replace(q_segments=IDS))
    ),
    "TypeError: selective_scan: x has segments, expected None: what is decoding goes on with one sequence": (
        lambda: decoded(bpref.selective_scan(6), Selective(*(jnp.ones((2, 5, n)) for n in (3, 3, 6, 6)), None, IDS))
    ),
}


test_bad_input_is_refused_by_name = pytest.mark.quick(refusals(BAD_CALLS))

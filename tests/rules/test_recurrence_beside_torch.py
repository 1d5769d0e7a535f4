"""The recurrences beside PyTorch's, forward and every gradient; lengths beside its packed sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.formulas.recurrence.steps import Passed, Steps
from bpref.rules.recurrence.bidirectional import Both
from bpref.rules.recurrence.gru import GruParams
from bpref.rules.recurrence.lstm import LstmParams, LstmState
from bpref.rules.recurrence.rnn import RnnParams
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


LENGTHS = np.array([5, 1, 7, 3])
B, T = 4, 7


class Draw:
    """Sizes from 2 to 5, and normal random parameters and inputs."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.d, self.H = (int(n) for n in self.rng.integers(2, 6, 2))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape)

    def rnn(self) -> RnnParams:
        return RnnParams(self.normal(self.H, self.d), self.normal(self.H, self.H), self.normal(self.H))

    def gru(self) -> GruParams:
        d, H = self.d, self.H
        return GruParams(self.normal(3 * H, d), self.normal(3 * H, H), self.normal(3 * H), self.normal(H))

    def lstm(self, p: int | None = None) -> LstmParams:
        d, H = self.d, self.H
        R = None if p is None else self.normal(p, H)
        return LstmParams(self.normal(4 * H, d), self.normal(4 * H, p or H), self.normal(4 * H), None, R)

    def given(self, state, lengths=LENGTHS) -> Steps:
        return Steps(self.normal(B, T, self.d), state, lengths)


@pytest.fixture
def draw(rng):
    return Draw(rng)


def run(kind, weights, x, states, **options):
    """A one-layer module of PyTorch with these weights, on packed sequences: y, and the state of each direction."""
    both = len(weights) > 1
    module = getattr(torch.nn, kind)(
        x.x.shape[-1], weights[0][1].shape[0] // {"RNN": 1, "GRU": 3, "LSTM": 4}[kind],
        bidirectional=both, batch_first=True, dtype=torch.float64, **options,
    )  # fmt: skip
    names = [name for name, _ in module.named_parameters()]
    given = dict(zip(names, [w for of_one in weights for w in of_one], strict=True))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x.x, x.lengths, batch_first=True, enforce_sorted=False)
    stacked = [torch.stack(v) for v in zip(*states, strict=True)]
    start = tuple(stacked) if kind == "LSTM" else stacked[0]
    y, last = torch.func.functional_call(module, given, (packed, start))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.x.shape[1])
    return y, [LstmState(*v) for v in zip(*last, strict=True)] if kind == "LSTM" else list(last)


def of_gru(p):
    H = p.v.shape[0]
    return p.W, p.U, p.b, torch.cat([torch.zeros(2 * H, dtype=torch.float64), p.v])


def of_lstm(p):
    return (p.W, p.U, p.b, torch.zeros_like(p.b), *(() if p.R is None else (p.R,)))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("checkpoint", [None, 3])
def test_rnn(draw, activation, checkpoint):

    def twin(p, x):
        weights = (p.W, p.U, p.b, torch.zeros_like(p.b))
        y, (last,) = run("RNN", [weights], x, [(x.state,)], nonlinearity=activation)
        return Passed(y, last)

    layer = bpref.rnn(draw.H, activation, checkpoint=checkpoint)
    assert_same(layer, twin, draw.rnn(), draw.given(draw.normal(B, draw.H)))


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_without_a_bias(draw, kind):
    make, params = {
        "RNN": (bpref.rnn, draw.rnn()._replace(b=None)),
        "GRU": (bpref.gru, draw.gru()._replace(b=None, v=None)),
        "LSTM": (bpref.lstm, draw.lstm()._replace(b=None)),
    }[kind]
    h, c = draw.normal(B, draw.H), draw.normal(B, draw.H)
    state = LstmState(h, c) if kind == "LSTM" else h

    def twin(p, x):
        y, (last,) = run(kind, [(p.W, p.U)], x, [x.state if kind == "LSTM" else (x.state,)], bias=False)
        return Passed(y, last)

    assert_same(make(draw.H, bias=False), twin, params, draw.given(state))


def test_gru(draw):

    def twin(p, x):
        y, (last,) = run("GRU", [of_gru(p)], x, [(x.state,)])
        return Passed(y, last)

    assert_same(bpref.gru(draw.H), twin, draw.gru(), draw.given(draw.normal(B, draw.H)))


@pytest.mark.parametrize("projected", [False, True])
def test_lstm(draw, projected):
    p = draw.H - 1 if projected else None
    state = LstmState(draw.normal(B, p or draw.H), draw.normal(B, draw.H))

    def twin(params, x):
        y, (last,) = run("LSTM", [of_lstm(params)], x, [x.state], proj_size=p or 0)
        return Passed(y, last)

    assert_same(bpref.lstm(draw.H, projection=p), twin, draw.lstm(p), draw.given(state))


def test_bidirectional_lstm(draw):
    states = Both(*(LstmState(draw.normal(B, draw.H), draw.normal(B, draw.H)) for _ in range(2)))

    def twin(p, x):
        y, last = run("LSTM", [of_lstm(p.ahead), of_lstm(p.back)], x, list(x.state))
        return Passed(y, Both(*last))

    layer = bpref.bidirectional(bpref.lstm(draw.H), bpref.lstm(draw.H, reverse=True))
    assert_same(layer, twin, Both(draw.lstm(), draw.lstm()), draw.given(states))


def test_many_steps_are_cut_into_segments_the_last_not_full():
    draw = Draw(np.random.default_rng(0))
    x = Steps(draw.normal(2, 131, draw.d), LstmState(draw.normal(2, draw.H), draw.normal(2, draw.H)), None)

    def twin(params, x):
        y, (last,) = run("LSTM", [of_lstm(params)], x._replace(lengths=torch.tensor([131, 131])), [x.state])
        return Passed(y, last)

    params = LstmParams(*(None if v is None else v / 4 for v in draw.lstm()))
    assert_same(bpref.lstm(draw.H), twin, params, x)


def test_the_cells_of_flax_are_the_same():
    """Its order of gates and its biases are this library's: GRU with one of its own in the product that is reset."""
    nn = pytest.importorskip("flax.linen", reason="Flax is not installed")
    draw = Draw(np.random.default_rng(1))
    x = draw.normal(B, T, draw.d)
    with jax.enable_x64(True):
        p, h = draw.gru(), jnp.zeros((B, draw.H))
        W, U, b = (np.split(v, 3) for v in (p.W, p.U, p.b))
        dense = {f"i{g}": {"kernel": W[i].T, "bias": b[i]} for i, g in enumerate("rzn")}
        dense |= {f"h{g}": {"kernel": U[i].T} for i, g in enumerate("rzn")}
        dense["hn"]["bias"] = p.v
        cell = nn.GRUCell(draw.H, param_dtype=jnp.float64)
        for t in range(T):
            h, _ = cell.apply({"params": dense}, h, x[:, t])
        np.testing.assert_allclose(bpref.gru(draw.H).forward(p, x)[0].state, h, rtol=1e-10)
        p, carry = draw.lstm(), (jnp.zeros((B, draw.H)),) * 2
        W, U, b = (np.split(v, 4) for v in (p.W, p.U, p.b))
        dense = {f"i{g}": {"kernel": W[i].T} for i, g in enumerate("ifgo")}
        dense |= {f"h{g}": {"kernel": U[i].T, "bias": b[i]} for i, g in enumerate("ifgo")}
        cell = nn.LSTMCell(draw.H, param_dtype=jnp.float64)
        for t in range(T):
            carry, h = cell.apply({"params": dense}, carry, x[:, t])
        np.testing.assert_allclose(bpref.lstm(draw.H).forward(p, x)[0].state.h, h, rtol=1e-10)

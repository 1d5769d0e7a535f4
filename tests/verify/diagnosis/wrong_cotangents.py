"""Right derivations in NumPy, at several points and cotangents, whose cotangents the tests of diagnoses spoil."""

import numpy as np

from bpref.verify.diagnosis.diagnose import diagnose
from bpref.verify.diagnosis.residual import Residual

POINTS, COTANGENTS = 3, 2
N, D, M = 7, 5, 4


def drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """One value per point, repeated for its cotangents."""
    return np.repeat(rng.normal(size=(POINTS, *shape)), COTANGENTS, axis=0)


def residual_of(where, hand, oracle, args, dy=None, y=None, others=None, terms=None) -> Residual:
    dy = {} if dy is None else {"y": dy}
    y = {} if y is None else {"y": y}
    return Residual(where, hand, oracle, others or {}, args, y, dy, 1e-10, terms and (lambda: terms))


class Dense:
    """`y = x W^T`, W (M, D): `dW = dy^T x`, `dx = dy W`."""

    def __init__(self, m: int = M, d: int = D):
        rng = np.random.default_rng(5)
        self.x, self.W, self.b = drawn(rng, N, d), drawn(rng, m, d), drawn(rng, m)
        self.dy = rng.normal(size=(POINTS * COTANGENTS, N, m))
        self.y = np.einsum("snd,smd->snm", self.x, self.W) + self.b[:, None]
        self.cotangents = {
            "x": np.einsum("snm,smd->snd", self.dy, self.W),
            "W": np.einsum("snm,snd->smd", self.dy, self.x),
            "b": self.dy.sum(1),
        }

    def residual(self, where: str, hand) -> Residual:
        oracle = self.cotangents[where]
        others = {name: v for name, v in self.cotangents.items() if name != where}
        args = {"x": self.x, "W": self.W, "b": self.b}
        return residual_of(where, hand(oracle) if callable(hand) else hand, oracle, args, self.dy, self.y, others)


class LayerNorm:
    """`y = (x - mean) / std * g`: `dx = (dy g - mean(dy g) - xhat mean(dy g xhat)) / std`."""

    def __init__(self, d: int = 6):
        rng = np.random.default_rng(6)
        self.x, self.g = drawn(rng, N, d), drawn(rng, d)
        self.dy = rng.normal(size=self.x.shape)
        self.std = self.x.std(-1, keepdims=True)
        self.xhat = (self.x - self.x.mean(-1, keepdims=True)) / self.std
        self.y = self.xhat * self.g[:, None]
        self.dxhat = self.dy * self.g[:, None]

    def dx(self, mean=1.0, variance=1.0, std=None):
        of_mean = self.dxhat.mean(-1, keepdims=True)
        of_variance = self.xhat * (self.dxhat * self.xhat).mean(-1, keepdims=True)
        return (self.dxhat - mean * of_mean - variance * of_variance) / (self.std if std is None else std)

    def residual(self, hand) -> Residual:
        return residual_of("x", hand, self.dx(), {"x": self.x, "g": self.g}, self.dy, self.y)


class Softmax:
    """`dx = p (dy - sum(p dy))`."""

    def __init__(self, c: int = 6):
        rng = np.random.default_rng(7)
        self.x = drawn(rng, N, c)
        self.dy = rng.normal(size=self.x.shape)
        e = np.exp(self.x)
        self.p = e / e.sum(-1, keepdims=True)
        self.dot = (self.p * self.dy).sum(-1, keepdims=True)
        self.dx = self.p * (self.dy - self.dot)

    def residual(self, hand) -> Residual:
        return residual_of("x", hand, self.dx, {"x": self.x}, self.dy, self.p)


class Gather:
    """`y[n] = table[ids[n]]`: `dtable[i]` is the sum of dy wherever ids is i."""

    ROWS = 8

    def __init__(self, ids=((1, 5, 1, 0, 7, 1), (2, 2, 0, 6, 3, 3), (4, 0, 6, 6, 1, 5))):
        rng = np.random.default_rng(8)
        self.ids = np.repeat(np.array(ids), COTANGENTS, axis=0)
        self.table = drawn(rng, self.ROWS, 3)
        self.dy = rng.normal(size=(*self.ids.shape, 3))
        self.dtable = np.zeros_like(self.table)
        for s, row in enumerate(self.ids):
            np.add.at(self.dtable[s], row, self.dy[s])

    def overwritten(self):
        hand = np.zeros_like(self.dtable)
        for s, row in enumerate(self.ids):
            hand[s][row] = self.dy[s]
        return hand

    def residual(self, hand) -> Residual:
        return residual_of("table", hand, self.dtable, {"table": self.table, "ids": self.ids}, self.dy)


def at(v: np.ndarray, index, value) -> np.ndarray:
    """`v` with `v[index]` replaced by a value, or by a function of it."""
    out = v.copy()
    out[index] = value(v[index]) if callable(value) else value
    return out


def is_unexplained(residual: Residual) -> None:
    found = diagnose(residual)
    assert found.kind == "unexplained", found
    assert "no simple pattern" in found.detail
    assert "worst: " in found.detail

"""A part of a block that is added to the stream it reads, and its norm, both ways.

Forward, of a stream s and a part r, an unadded half of a block without a norm of its own:

    s' = s + r(norm(s))                                     the norm in front
    s' = norm(u),    u = s + r(s)                           with `post_norm` behind the sum

Backward, of the cotangent ds' of the stream behind it:

    ds = ds' + norm back of r's backward of ds'
    ds = du + r's backward of du,    du = norm back of ds'

What its norm is of is kept, s or u, with the statistics of its rows; and of the part's cache all but its input, which
is made again: norm(s), or s, which is the norm of the u of the part in front.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax import Array, lax
from jaxtyping import Float, PyTree

from bpref.dtypes import cast
from bpref.formulas.norm.pre_norm import NormParams, Statistics, normalize, pull_normalize, statistics
from bpref.layer import Layer


class Kept(NamedTuple):
    """Of one part.

    Attributes:
      stream: what its norm is of; in a cache that keeps it elsewhere `None`.
      of_stream: the statistics of that.
      own: its own cache, but for its input, the field x.
    """

    stream: Float[Array, "*b T d"]
    of_stream: Statistics
    own: PyTree


class Part(NamedTuple):
    """A part, its params and those of its norm, and what makes of the stream that it reads its input."""

    layer: Layer
    params: PyTree
    norm: NormParams
    put: Callable[[Array], PyTree]

    def forward(self, read: Array) -> tuple[Array, PyTree]:
        """What it adds, and its cache but for its input."""
        r, cache = self.layer.forward(self.params, self.put(read))
        return r, cache._replace(x=None)

    def opened(self, read: Array, cache: PyTree, dr: Array) -> tuple[PyTree, PyTree]:
        """dparams, and the cotangent of its input."""
        assert self.layer.opened is not None
        return self.layer.opened(self.params, cache._replace(x=self.put(read)), dr)


class Norms(NamedTuple):
    """Which norm the parts have, and whether it stands behind the sums."""

    norm: str
    eps: float
    post_norm: bool

    def forward(self, part: Part, s: Array) -> tuple[Array, Kept]:
        """The stream behind a part."""
        if not self.post_norm:
            of = statistics(self.norm, s, self.eps)
            r, own = part.forward(normalize(part.norm, s, of))
            return lax.add(s, r), Kept(s, of, own)
        r, own = part.forward(s)
        u = lax.add(s, r)
        of = statistics(self.norm, u, self.eps)
        return normalize(part.norm, u, of), Kept(u, of, own)

    def read(self, x: Array, parts: Sequence[Part], kept: Sequence[Kept]) -> list[Array]:
        """What each part reads, x being the stream in front of the first."""
        normed = [normalize(part.norm, of.stream, of.of_stream) for part, of in zip(parts, kept, strict=True)]
        return [x, *normed[:-1]] if self.post_norm else normed

    def opened(self, part: Part, kept: Kept, read: Array, ds: Array) -> tuple[PyTree, NormParams, Array, PyTree]:
        """The cotangents of the part's params, of its norm's, of the stream in front, and of all that it is given."""
        if not self.post_norm:
            dparams, given = part.opened(read, kept.own, ds)
            dnorm, dn = pull_normalize(part.norm, kept.stream, kept.of_stream, _sequence(given))
            return dparams, dnorm, lax.add(ds, cast(dn, ds.dtype)), given
        dnorm, du = pull_normalize(part.norm, kept.stream, kept.of_stream, ds)
        du = cast(du, ds.dtype)
        dparams, given = part.opened(read, kept.own, du)
        return dparams, dnorm, lax.add(du, _sequence(given)), given


def _sequence(given: PyTree) -> Array:
    return given if isinstance(given, Array) else given.x

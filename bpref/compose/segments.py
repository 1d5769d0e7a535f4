"""segments: layers in series of which runs are made again together, from what the first of them was given.

The same function as `serial`, with the same params. The cache of a run of layers is its input; its layers' own caches
are made when the backward comes to them: checkpoints between segments (Chen et al., arXiv:1604.06174).
"""

from bpref.compose.parts import Parts, without
from bpref.compose.remat import remat
from bpref.compose.serial import in_series
from bpref.layer import Layer

Span = tuple[int, int]
"""The numbers of a run's first layer and of the first behind it."""


def segments(parts: Parts, runs: tuple[Span, ...], apart: bool) -> Layer:
    """`serial` of the parts, these runs of which are made again, `apart` as of `remat`. They do not overlap."""
    starts = dict(runs)
    spans, i = [], 0
    while i < len(parts.layers):
        spans.append((i, starts.get(i, i + 1)))
        i = spans[-1][1]

    def run_of(a, b):
        return Parts(parts.layers[a:b], parts.names[a:b])

    whole = in_series(parts)
    inner = in_series(
        Parts(tuple(remat(in_series(run_of(a, b)), apart) if (a, b) in runs else parts.layers[a] for a, b in spans))
    )

    def grouped(what, given):
        each = parts.apart("serial", given, what)
        return tuple(run_of(a, b).together(each[a:b]) if (a, b) in runs else each[a] for a, b in spans)

    def flat(groups):
        each = zip(spans, groups, strict=True)
        return parts.together(
            v for (a, b), group in each for v in (run_of(a, b).apart("serial", group) if (a, b) in runs else (group,))
        )

    def forward(params, x):
        x, beside = without("serial", parts.is_stateful, x)
        if not parts.is_stateful:
            return inner.forward(grouped("params", params), x)
        given = beside._replace(state=grouped("state", beside.state))
        (y, after), cache = inner.forward(grouped("params", params), given)
        return (y, flat(after)), cache

    def backward(params, cache, dy):
        dparams, dx = inner.backward(grouped("params", params), cache, dy)
        return flat(dparams), dx

    def rebuild(*new):
        return segments(Parts(new, parts.names), runs, apart)

    return Layer(whole.init, forward, backward, "segments", parts.layers, rebuild, parts.names, whole.begin)

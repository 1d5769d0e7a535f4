"""How long a program takes at least on a TPU, if nothing waits: its products, its memory, and what its chips send."""

from typing import NamedTuple

from bpref.devices.compiling import Compiled


class Peak(NamedTuple):
    """Of one chip, each second: operations in bfloat16, bytes from and to memory, bytes sent to other chips."""

    flops: float
    memory: float
    links: float


PEAKS = {
    "tpu-v5e": Peak(197e12, 819e9, 200e9),
    "tpu-v5p": Peak(459e12, 2765e9, 600e9),
    "tpu-v6e": Peak(918e12, 1600e9, 400e9),
}
"""As the cloud's pages on these chips say, all links of a chip together, one way."""


def at_least(target: str, seen: Compiled, devices: int) -> dict[str, float]:
    """Seconds for products, memory and links, the largest first; none where the chip's peaks are not known."""
    peak = PEAKS.get(target.split(":")[0])
    if peak is None:
        return {}
    times = {
        "products": seen.flops / devices / peak.flops,
        "memory": seen.accessed / peak.memory,
        "links": seen.sent / peak.links,
    }
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def in_words(times: dict[str, float]) -> str:
    """`products 1.12 s, links 0.4 s`: what dominates stands first."""
    return ", ".join(f"{what} {seconds:.2g} s" for what, seconds in times.items())

"""What depends on how far a key is from its query, one distance and one head at a time."""

import math


def slope(head: int, heads: int) -> float:
    """ALiBi's slope of a head: powers of 2^(-8 / N) for N a power of two; of other N the largest N' below it gives the
    first N', and 2 N' heads give the rest, their first, third and so on (arXiv:2108.12409, section 3; authors' code).
    """
    lower = 1
    while 2 * lower <= heads:
        lower *= 2
    if head < lower:
        return 2.0 ** (-8.0 * (head + 1) / lower)
    return 2.0 ** (-8.0 * (2 * (head - lower) + 1) / (2 * lower))


def bucket(distance: int, number: int, furthest: int, both_ways: bool) -> int:
    """T5's bucket of a distance s - t (arXiv:1910.10683, section 2.1; authors' code)."""
    if both_ways:
        half = number // 2
        return (half if distance > 0 else 0) + bucket(-abs(distance), half, furthest, False)
    back = max(-distance, 0)
    exact = number // 2
    if back < exact:
        return back
    beyond = math.log(back / exact) / math.log(furthest / exact) * (number - exact)
    return min(exact + math.floor(beyond), number - 1)

"""At its peaks a chip takes so long for products, memory and links."""

from bpref.devices.bounds import at_least, in_words
from bpref.devices.compiling import Compiled

SEEN = Compiled(0, 0, 0, accessed=819 * 10**9, flops=16 * 197 * 10**12 * 3, cycles=None, collectives={}, loops_once=0)


def test_what_takes_longest_stands_first():
    times = at_least("tpu-v5e:4x4", SEEN._replace(sent=400 * 10**9), 16)
    assert times == {"products": 3, "links": 2, "memory": 1}
    assert in_words(times) == "products 3 s, links 2 s, memory 1 s"
    assert at_least("h100:8", SEEN, 8) == {}

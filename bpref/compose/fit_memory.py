"""fit_memory: which caches to keep, to make again, or to send to the host, so that they fit into so many bytes.

Of layers in series, in the order of the forward, layer i keeps s_i bytes until its backward, which takes p_i >= s_i of
them, and costs c_i more than it must:

    keep         s = p = its cache               c = 0
    recompute    s = x,    p = x and its cache   c = its forward's flops                       (`remat`)
                 of a run of layers together: x is the first one's, and p has all their caches
    offload      s = 0,    p = its cache         c = the flops while its bytes go and come     (`offload`)
                 inside of `scan` alone: elsewhere XLA may have all of them back at once

While layer i goes back, what the layers below it keep is still there: of all series of choices with

    s_1 + ... + s_{i-1} + p_i <= bytes       for every i

the one of least cost is sought. Series grow from the front, layer by layer; one is dropped where another keeps no more,
takes no more and costs no more. Checkmate solves the same for any graph (Jain et al., arXiv:1910.02653). Of a `scan` of
L turns s and c are L times a turn's, and only one turn at a time takes its p.

Bytes are those of `jax.eval_shape`, and count twice what two caches have in common. Parameters, gradients and what XLA
needs besides are not among them. A CPU's compiler makes nothing again outside of `scan`: it finds that it is there.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from bpref.checks.hyperparameters import is_number, require_positive_or_none
from bpref.compose.cache_choices import Choice, Given, Terms, options_of
from bpref.compose.flops import flops
from bpref.compose.parts import run
from bpref.dtypes import require_arrays
from bpref.layer import Layer, With, begin, require_layer


class MemoryPlan(NamedTuple):
    """What `fit_memory` chose; printed, it is a table.

    Attributes:
      network: rewritten, with the same params.
      choices: for each layer.
      bytes: the caches that are kept on the device when the forward is done.
      peak: the most caches at a time.
      cost: the additional flops.
      forward: the flops of one forward.
    """

    network: Layer
    choices: tuple[Choice, ...]
    bytes: int
    peak: int
    cost: float
    forward: int

    def __str__(self) -> str:
        width = max(len(c.path) for c in self.choices)
        rows = [f"{c.path:{width}}  {c.how:9}  {c.bytes:>15,} bytes  {c.cost:>10.2e} flops" for c in self.choices]
        share = self.cost / max(1, self.forward)
        rows.append(
            f"{self.bytes:,} bytes of caches, {self.peak:,} at most; {share:.0%} of a forward's flops in addition"
        )
        return "\n".join(rows)


def fit_memory(network: Layer, x: PyTree, bytes: int, flops_per_byte: float | None = None) -> MemoryPlan:
    """The network with the caches of some layers made again, or sent to the host, and what that costs.

    It looks into `serial`, `objective`, `residual`, `scan`, `shared`, `channels_first` and `unbatched`, and takes all
    else as one layer.

    Args:
      network: any composition; what is in `remat` or `offload` already stays there.
      x: its input, arrays or specifications; `With` the data beside it where a layer reads some.
      bytes: of caches, at any time.
      flops_per_byte: how many flops the device does in the time in which a byte goes to the host's memory, such as
        10,000 for a GPU beside PCIe; left out, nothing is offloaded. On a CPU, which is the host, that gains nothing.

    Example:
      >>> network = bpref.serial(bpref.linear(64), bpref.tanh(), bpref.linear(3))
      >>> plan = bpref.fit_memory(network, X, bytes=1200)
      >>> [(choice.path, choice.how) for choice in plan.choices]
      [('0 linear to 1 tanh', 'recompute'), ('2 linear', 'keep')]
      >>> params = plan.network.init(jax.random.key(0), X)

    Raises:
      ValueError: nothing fits into `bytes`; the message says what would. Or it is no positive number.
      TypeError: `network` is no Layer, or x holds something else than arrays.
    """
    who = "fit_memory"
    require_layer(who, "network", network)
    require_arrays(who, x=x)
    if not is_number(bytes) or bytes <= 0:
        raise ValueError(f"{who}: bytes is {bytes!r}, expected a positive number")
    rate = require_positive_or_none(who, "flops_per_byte", flops_per_byte)
    x = jax.eval_shape(lambda x: x, x)
    params, state = jax.eval_shape(lambda key: begin(network, key, x), jax.random.key(0))
    value, beside = (x.x, x._replace(x=None, state=state)) if isinstance(x, With) else (x, With(None, state))
    found = options_of(network, Given(params, value, beside), (), Terms(rate, bytes))
    if not found:
        least = min(o.peak for o in options_of(network, Given(params, value, beside), (), Terms(rate, math.inf)))
        raise ValueError(f"{who}: bytes is {bytes:,}, and nothing fits; the least that would is {least:,}")
    best = min(found, key=lambda o: (o.cost, o.peak))
    forward = flops(partial(run, network), params, value, beside)
    return MemoryPlan(best.layers[0], best.choices, best.kept, best.peak, best.cost, forward)

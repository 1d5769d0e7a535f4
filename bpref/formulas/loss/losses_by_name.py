"""A loss that is named, and made with hyperparameters that are given by name: what a head's fused forms stand under."""

import inspect
from collections.abc import Callable, Mapping

from bpref.layer import Layer


def made(who: str, make: Callable[..., Layer], hyper: object, without: str = "") -> Layer:
    """`make(**hyper)`; raises `ValueError` unless `hyper` is None or a mapping of what it is made with.

    `without` is a hyperparameter that has no meaning here.
    """
    known = [name for name in inspect.signature(make).parameters if name != without]
    if hyper is None:
        return make()
    if not isinstance(hyper, Mapping) or not set(hyper) <= set(known):
        raise ValueError(f"{who}: hyper is {hyper!r}, expected None or a dict of some of {', '.join(known)}")
    return make(**hyper)

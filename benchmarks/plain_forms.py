"""The best plain form of a rule whose reference is deliberately naive or slow: what a user of JAX would write."""

from collections.abc import Callable
from typing import Any

PLAIN: dict[str, Callable[..., Any]] = {}
"""By rule: `(params, x, **hyper) -> y`."""

"""Calls that are refused: the whole message of each, and the call."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

OTHERS = {kind.__name__: kind for kind in (TypeError, KeyError)}


def refusals(calls: Mapping[str, Any], by: Callable[[Any], Any] = lambda call: call()) -> Callable[..., None]:
    """A test of each call, that it is refused with its message: by a `ValueError`, or what it begins with.

    Args:
      calls: of each message what is refused with it. One that ends in `...` is how a longer one begins.
      by: what is called with it, if it is no function that is called itself.
    """

    @pytest.mark.parametrize(("message", "given"), calls.items(), ids=calls)
    def is_refused(message, given):
        kind = OTHERS.get(message.partition(": ")[0], ValueError)
        with pytest.raises(kind) as raised:
            by(given)
        said, expected = str(raised.value), message.removeprefix(f"{kind.__name__}: ")
        assert said == expected or (expected.endswith("...") and said.startswith(expected[:-3])), said

    return is_refused

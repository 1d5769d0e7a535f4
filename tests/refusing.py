"""Calls that are refused: what each raises, and the whole message."""

from collections.abc import Callable, Mapping

import pytest


def refusals(calls: Mapping[str, tuple]) -> Callable[..., None]:
    """A test of each `(call, message)`, a `ValueError`, or `(call, kind, message)`, by its name."""

    @pytest.mark.parametrize("refused", calls.values(), ids=calls)
    def is_refused(refused):
        call, kind, message = refused if len(refused) == 3 else (refused[0], ValueError, refused[1])
        with pytest.raises(kind) as raised:
            call()
        assert str(raised.value) == message

    return is_refused

"""rates: what optimisers ask of their rates."""

from bpref.checks.hyperparameters import is_number, plain, require_positive


def require_rate(who: str, learning_rate: object) -> None:
    """Raise `ValueError` unless it is a positive number, or a schedule."""
    if not callable(learning_rate):
        require_positive(who, "learning_rate", learning_rate)


def require_decay(who: str, name: str, v: float) -> float:
    """`v` as Python has it; raise `ValueError` unless it is a number from 0 to below 1."""
    if not is_number(v) or not 0 <= v < 1:
        raise ValueError(f"{who}: {name} is {v!r}, expected a number of at least 0 and below 1")
    return plain(v)

"""Garbage collection for processes that do nothing but trace and compile one program after the other."""

import gc


def collect_rarely() -> None:
    """Let Python's collector run seldom: what tracing makes lives on in JAX's caches, and is looked through in vain.

    Of a long run of checks that is a tenth of the time or more.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)

"""The pytest plugin: `check_gradient`, for tests that hold a hand-derived gradient against autodiff."""

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from bpref import Layer, Report


@pytest.fixture
def check_gradient(request: pytest.FixtureRequest) -> "Callable[..., Report]":
    """`bpref.check`, for a test: it fails with the report, in place of a traceback, unless everything is right.

        def test_rms_norm(check_gradient):
            check_gradient(rms_norm, x, g)

    It takes what `bpref.check` takes and returns its `Report`. The key is made from the test's name, so that every run
    of a test tries the same values, and no two tests the same; `key=...` sets another.
    """
    key_of_test = zlib.crc32(request.node.nodeid.encode()) % 10**6

    def check_gradient(fun: "Callable | Layer", *args: "PyTree", **options: Any) -> "Report":
        import bpref  # not before a test asks for it: JAX reads the environment when it is imported

        options.setdefault("key", key_of_test)
        report = bpref.check(fun, *args, **options)
        if not report.ok:
            pytest.fail(str(report), pytrace=False)
        return report

    return check_gradient

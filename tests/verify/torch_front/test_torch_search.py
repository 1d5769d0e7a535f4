"""search of PyTorch functions: at sizes, dtypes and values as for JAX's, with tensors."""

import pytest

torch = pytest.importorskip("torch")

import bpref  # noqa: E402
from tests.verify.host.test_host import SATURATED  # noqa: E402
from tests.verify.torch_front import torch_functions as f  # noqa: E402
from tests.verify.torch_front.test_torch_sizes import Blocked  # noqa: E402


def test_a_right_function_passes():
    report = bpref.search(f.Softmax.apply, ("f32|bf16[N,d]",), reference=softmax, seconds=5, key=1)
    assert report.ok, str(report)
    assert report.name == "Softmax"
    assert report.refused < report.tried


def softmax(x):
    return torch.softmax(x, -1)


@pytest.mark.parametrize("x", SATURATED, ids=["two rows", "one"])
def test_a_search_that_finds_a_saturated_softmax_accuses_it_of_nothing(x):
    for key in (1, 2, 5):
        report = bpref.check(f.Softmax.apply, torch.tensor(x), reference=softmax, key=key)
        assert report.verdict in ("ok", "cannot tell"), str(report)


def test_a_row_that_occurs_twice_is_found_and_shown_with_tensors():
    report = bpref.search(f.EmbeddingOverwritten.apply, ("i64[T]<V", "f32[V,d]"), seconds=20, key=1)
    assert report.found, str(report)
    assert all(isinstance(v, torch.Tensor) for v in report.args)
    found = {}
    exec(report.snippet, found)
    assert found["report"].verdict == "wrong"


def test_a_size_that_is_no_multiple_of_a_block_is_found():
    report = bpref.search(Blocked.apply, ("f32[d]",), reference=torch.sin, seconds=20, key=1)
    assert report.found
    assert not report.report.ok

"""check of PyTorch as it is: autograd functions, modules and custom operators, right and wrong."""

import pytest

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import numpy as np  # noqa: E402

import bpref  # noqa: E402
from bpref.verify.numbers.points import by_zipfs_law  # noqa: E402
from tests.conftest import SEED  # noqa: E402
from tests.refusing import refusals  # noqa: E402
from tests.verify.torch_front import torch_functions as f  # noqa: E402
from tests.verify.written import details, kinds, verdicts  # noqa: E402

GENERATOR = torch.Generator().manual_seed(SEED)
X, W, B = (torch.randn(*shape, generator=GENERATOR) for shape in ((5, 8), (8,), (8,)))
TABLE, IDS = torch.randn(6, 4, generator=GENERATOR), torch.tensor([0, 3, 3, 5])
LABELS = torch.tensor([1, 0, 7, 7, 2])

RIGHT = {
    "rms": (f.Rms.apply, (X, W), f.rms_naive),
    "layer_norm": (f.LayerNorm.apply, (X, W, B), lambda x, w, b: torch.nn.functional.layer_norm(x, (8,), w, b)),
    "softmax": (f.Softmax.apply, (X,), lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True)),
    "embedding": (f.Embedding.apply, (IDS, TABLE), lambda ids, table: torch.nn.functional.embedding(ids, table)),
    "cross_entropy": (f.CrossEntropy.apply, (X, LABELS), torch.nn.functional.cross_entropy),
}

WRONG = {
    "rms": (f.RmsTwice.apply, {("x", "factor")}),
    "layer_norm": (f.LayerNormNoMean.apply, {"x"}),
    "softmax": (f.SoftmaxDiagonal.apply, {"x"}),
    "embedding": (f.EmbeddingOverwritten.apply, {"table"}),
    "cross_entropy": (f.CrossEntropyNoDy.apply, {"logits"}),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_right_function_is_right_in_every_dtype(name, dtype):
    fun, args, reference = RIGHT[name]
    cast = [v.to(dtype) if v.is_floating_point() else v for v in args]
    report = bpref.check(fun, *cast, reference=reference, key=1)
    assert report.ok, str(report)
    assert report.oracle == "float64 oracle: the reference, differentiated by torch.autograd"
    assert all(p.dtype == str(dtype).removeprefix("torch.") for v in report.verdicts for p in v.precision)
    sizes, *more = report.notes
    assert sizes.startswith("looked at ")
    assert more in ([], ["it casts down inside; the derivation was judged without those casts"])


@pytest.mark.parametrize("name", RIGHT)
def test_without_a_reference_it_is_held_against_differences(name):
    fun, args, _ = RIGHT[name]
    report = bpref.check(fun, *args, key=1)
    assert report.ok, str(report)
    assert report.oracle.startswith("numerical oracle: finite differences of its own primal")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function_is_wrong_with_and_without_a_reference(name):
    (_, args, reference), (fun, where) = RIGHT[name], WRONG[name]
    accused = {w if isinstance(w, str) else w[0] for w in where}
    for options in ({"reference": reference}, {}):
        report = bpref.check(fun, *args, key=1, **options)
        assert {w for w, v in verdicts(report).items() if v == "wrong"} == accused, str(report)
    half = [v.bfloat16() if v.is_floating_point() else v for v in args]
    assert bpref.check(fun, *half, key=1, reference=reference).verdict == "wrong"


def test_a_diagnosis_is_that_of_a_jax_function():
    report = bpref.check(f.RmsTwice.apply, X, W, reference=f.rms_naive, key=1)
    assert kinds(report) == {("x", "factor")}
    assert details(report)["x"] == "2.000 x the reference, every element: a constant factor 2"
    assert str(report).startswith("RmsTwice   float64 oracle")
    assert kinds(bpref.check(f.RmsTwice.apply, X, W, key=1)) == {("x", "factor")}


class Module(torch.nn.Module):
    def __init__(self, function=f.Rms):
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(W.clone())
        self.frozen = torch.nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, x):
        return self.function.apply(x, self.weight) * self.frozen


class Naive(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return f.rms_naive(x, self.weight)


def test_a_module_has_its_parameters_by_name():
    module = Module()
    for reference in (Naive(), lambda x: f.rms_naive(x, module.weight)):
        report = bpref.check(module, X, reference=reference, key=1)
        assert verdicts(report) == {"y": "ok", "x": "ok", "weight": "ok"}, str(report)
    assert verdicts(bpref.check(Module(f.RmsTwice), X, reference=Naive(), key=1))["x"] == "wrong"
    assert torch.equal(module.weight, W)
    assert module.weight.grad is None


def test_a_backward_that_reads_the_module_again_finds_the_parameters_of_the_check():
    report = bpref.check(f.Recomputing(W), X, key=1)
    assert verdicts(report) == {"x": "ok", "weight": "ok"}, str(report)


def test_an_output_of_four_dimensions_has_its_precision():
    q = X.reshape(5, 2, 2, 2)
    report = bpref.check(lambda q: f.Rms.apply(q.reshape(5, 8), W).reshape(q.shape), q, key=1)
    assert [len(p.worst) for v in report.verdicts for p in v.precision] == [4], str(report)


def test_a_module_of_pytorch_is_checked_by_differences_and_its_buffers_stay():
    module = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.BatchNorm1d(3))
    report = bpref.check(module, X, key=1)
    assert set(verdicts(report)) == {"input", "0.weight", "0.bias", "1.weight", "1.bias"}
    assert report.verdict != "wrong"
    assert int(module[1].num_batches_tracked) == 0


def test_what_needs_no_gradient_has_no_verdict():
    x, w = X.clone().requires_grad_(), W.clone()
    assert verdicts(bpref.check(f.ScaleNone.apply, x, w, reference=f.scale_naive, key=1)) == {"y": "ok", "x": "ok"}
    none = bpref.check(f.ScaleNone.apply, X, W, reference=f.scale_naive, key=1)
    assert details(none)["w"] == "the backward returned None for it, which stands for zero, and it is not zero"


def test_a_backward_in_another_form_is_said():
    few = bpref.check(f.ScaleOneTooFew.apply, X, W, reference=f.scale_naive, key=1)
    assert "incorrect number of gradients (expected 2, got 1)" in details(few)["x"]
    assert kinds(few) == {("x", "structure"), ("w", "structure")}
    shape = bpref.check(f.ScaleWrongShape.apply, X, W, reference=f.scale_naive, key=1)
    assert "invalid gradient at index 1" in details(shape)["w"]
    nothing = bpref.check(lambda x: x.detach() * 2, X, reference=lambda x: 2 * x, key=1)
    assert details(nothing)["x"] == "its output carries no gradient: no output has a grad_fn"


@pytest.mark.parametrize(
    ("fun", "detail"),
    [
        (f.ScaleByMemory, "y differs for a non-contiguous x"),
        (f.ScaleDyByMemory, "with dy sliced from wider rows the backward raised RuntimeError: view"),
        (f.ScaleForBothAlone, "differs where x alone needs a gradient"),
        (f.ScaleOverwritesDy, "its backward writes into dy"),
    ],
)
def test_what_only_another_call_shows_is_wrong(fun, detail):
    report = bpref.check(fun.apply, X, W, reference=f.scale_naive, key=1)
    assert report.verdict == "wrong", str(report)
    assert detail in str(report)


def test_an_argument_that_is_written_into_is_a_finding_and_not_wrong():
    report = bpref.check(f.ScaleOverwritesX.apply, X.clone(), W, reference=f.scale_naive, key=1)
    assert report.ok, str(report)
    assert "its forward writes into x" in report.notes
    assert ("x", "impure") in kinds(report)


def test_a_sum_in_any_order_is_not_deterministic_and_not_wrong():
    x = torch.randn(64, 8, generator=GENERATOR)
    report = bpref.check(f.ScaleInAnyOrder.apply, x, W, reference=f.scale_naive, key=1)
    assert report.ok, str(report)
    assert report.notes[0].startswith("not deterministic: runs differ by up to ")
    assert report.notes[0].endswith(" ulp in dw")


def test_a_random_function_cannot_be_told():
    report = bpref.check(f.ScaleAtRandom.apply, X, W, reference=f.scale_naive, key=1)
    assert set(details(report).values()) == {"called twice with the same arguments it gives two answers"}
    assert report.verdict == "cannot tell"


def test_a_kernel_in_one_dtype_is_judged_in_it():
    right = bpref.check(f.ScaleInFloat32.apply, X, W, reference=f.scale_naive, key=1)
    assert right.ok, str(right)
    assert "computed in float32" in details(right)["x"]
    half = X.bfloat16(), W.bfloat16()
    for factor, verdict in ((1.0, "ok"), (2.0, "wrong"), (-1.0, "wrong"), (1.25, "wrong")):
        report = bpref.check(f.ScaleInHalf.of(factor).apply, *half, reference=f.scale_naive, key=1)
        assert verdicts(report) == {"y": "ok", "x": verdict, "w": "ok"}, str(report)
    alone = bpref.check(f.ScaleInHalf.of(1.0).apply, *half, key=1)
    assert alone.verdict == "cannot tell"
    assert alone.notes[0].endswith("give reference=, a plain version of it")


def test_a_backward_beside_a_function_of_pytorchs_own():
    right = bpref.check(lambda x, w: x * w, X, W, backward=lambda a, dy: (dy * a[1], (dy * a[0]).sum(0)), key=1)
    assert right.ok, str(right)
    assert right.oracle == "float64 oracle: its own primal, differentiated by torch.autograd"
    wrong = bpref.check(lambda x, w: x * w, X, W, backward=lambda a, dy: (dy * a[1], (dy * a[0]).mean(0)), key=1)
    assert verdicts(wrong) == {"x": "ok", "w": "wrong"}


def test_a_value_other_than_the_references_is_wrong():
    report = bpref.check(f.Scale.apply, X, W, reference=lambda x, w: x * w + 1, key=1)
    assert verdicts(report) == {"y": "wrong", "x": "ok", "w": "ok"}


def test_specifications_and_meta_tensors_are_filled():
    specs = jax.ShapeDtypeStruct((5, 8), np.float32), jax.ShapeDtypeStruct((8,), np.float32)
    meta = torch.empty(5, 8, device="meta"), torch.empty(8, device="meta")
    for args in (specs, meta):
        assert bpref.check(f.Rms.apply, *args, reference=f.rms_naive, key=1).ok
        assert not bpref.check(f.RmsTwice.apply, *args, reference=f.rms_naive, key=1).ok


def test_a_custom_operator_is_checked():
    @torch.library.custom_op("bpref_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_autograd(lambda ctx, dy: 3 * dy)
    report = bpref.check(twice, X, reference=lambda x: 2 * x, key=1)
    assert kinds(report) == {("x", "factor")}


def test_complex_tensors_and_several_outputs():
    z = torch.complex(X, X.flip(0))
    report = bpref.check(lambda z: (z * z, z.abs().sum()), z, key=1)
    assert report.ok, str(report)
    assert bpref.check(lambda z: z * z, z, reference=lambda z: z**2, key=1).ok


def test_whatever_a_backward_raises_is_said():
    class Raising(f.Rms):
        @staticmethod
        def backward(ctx, dy):
            raise KeyError("x")

    report = bpref.check(Raising.apply, X, W, reference=f.rms_naive, key=1)
    assert {v.detail for v in report.verdicts if v.verdict == "wrong"} == {"the backward raised KeyError: 'x'"}


def test_an_empty_tensor_is_looked_at():
    assert bpref.check(f.Rms.apply, X[:0], W, reference=f.rms_naive, key=1).ok


def test_a_test_takes_it(check_gradient):
    check_gradient(f.Rms.apply, X, W, reference=f.rms_naive)
    with pytest.raises(AssertionError):
        bpref.assert_gradient(f.RmsTwice.apply, X, W, reference=f.rms_naive, key=1)


def test_another_subgradient_at_a_tie_is_right_in_every_dtype():
    x = torch.tensor([[0.0, 1.0, 1.0, -2.0], [3.0, 1.0, 3.0, 3.0], [0.5, 0.25, 2.0, 1.0]])
    amax = lambda x: x.amax(-1)  # noqa: E731
    for dtype in (torch.float32, torch.bfloat16):
        report = bpref.check(f.Maximum.apply, x.to(dtype), reference=amax, key=1)
        assert report.ok, str(report)
    assert bpref.check(f.MaximumOfAll.apply, x, reference=amax, key=1).verdict == "wrong"


def test_a_reference_whose_autograd_is_not_its_derivative_is_said():
    stopped = lambda x, w: x.detach() * w  # noqa: E731
    report = bpref.check(f.Scale.apply, X, W, reference=stopped, key=1)
    assert verdicts(report) == {"y": "ok", "x": "wrong", "w": "ok"}
    (note,) = report.notes
    assert note.startswith("x: at [0, 6] the oracle says 0, finite differences ")
    assert note.endswith(": a detach(), or a mistake in the reference")


def test_an_embedding_that_accumulates_in_half_precision_as_its_reference_does():
    """Ids by Zipf's law: few rows have most of the sum, and autograd of the reference has the same fault."""

    def summed(ids, dy, shape):
        return torch.zeros(shape, dtype=dy.dtype).index_put_((ids,), dy, accumulate=True)

    ids = torch.from_numpy(by_zipfs_law(np.random.default_rng(SEED), (8192,), 16).astype(np.int64))
    W = torch.from_numpy(np.random.default_rng(SEED).normal(size=(16, 2))).to(torch.bfloat16)
    report = bpref.check(f.lookup(summed), W, ids, reference=lambda W, ids: W[ids], key=1)
    assert [v.verdict for v in report.verdicts] == ["ok", "imprecise"], str(report)
    assert report.verdicts[1].detail.startswith("bfloat16 as imprecise as autodiff: as a whole ")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", ["added", "first"])
def test_a_sparse_gradient_is_what_its_entries_add_up_to(rows):
    def sparse(ids, dy, shape):
        n = len(ids) if rows == "added" else 1
        return torch.sparse_coo_tensor(ids[None, :n], dy[:n], shape)

    report = bpref.check(f.lookup(sparse), TABLE, IDS, reference=lambda t, i: t[i], key=1)
    assert verdicts(report)["table"] == ("ok" if rows == "added" else "wrong")


NOT_DENSE = {
    "sparse_coo": lambda: X.to_sparse(),
    "sparse_csr": lambda: X.to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([W, B]),
    "quantized": lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
}
BAD_CALLS = {
    "Scale: no argument is a tensor that has a gradient; the call has x: torch.int64[3], w: torch.int64[3]": (
        lambda: bpref.check(f.Scale.apply, torch.arange(3), torch.arange(3), reference=f.scale_naive)
    ),
    "Scale raised RuntimeError: The size of tensor a (8) must match...": (
        lambda: bpref.check(f.Scale.apply, X, torch.ones(3), reference=f.scale_naive)
    ),
    "the reference raised ZeroDivisionError: integer division or modulo by zero (called with x: float32[5, 8], "
    "g: float32[8])": (lambda: bpref.check(f.Rms.apply, X, W, reference=lambda x, g: x / (1 // 0), key=1)),
    "the backward of sin raised ZeroDivisionError...": (
        lambda: bpref.check(torch.sin, X, backward=lambda args, dy: (dy / (1 // 0),), key=1)
    ),
} | {
    f"Softmax: x is a {kind} tensor; only dense ones of plain numbers are drawn": (
        lambda make=make: bpref.check(f.Softmax.apply, make(), key=1)
    )
    for kind, make in NOT_DENSE.items()
}

test_bad_calls_are_refused = pytest.mark.filterwarnings("ignore")(refusals(BAD_CALLS))

"""The losses on PyTorch's own samples."""

import pytest

import bpref
from bpref.rules.linear.linear import LinearParams
from tests.rules.torch_samples import Ours, Outcome, Row, Table, assert_as_expected, made

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def of_pair(make, factor=1.0, **renamed):
    """A loss of input and target, whose arguments have these names here."""

    def ours(input, target, reduction="mean", **options):
        hyper = {renamed.get(name, name): value for name, value in options.items()}
        return Ours(made(make, reduction=reduction, **hyper), (input, target), back=lambda J: factor * J)

    return ours


def smooth_l1(input, target, reduction="mean", beta=1.0):
    layer = made(bpref.huber, float(beta), True, reduction) if beta else made(bpref.absolute, reduction)
    return Ours(layer, (input, target))


def gaussian(input, target, var, full=False, eps=1e-6, reduction="mean"):
    """A variance for several numbers is a broadcast one; it is never below eps in these samples."""
    var = var if var.ndim == input.ndim else var.unsqueeze(-1)
    m, y, v = torch.broadcast_tensors(input, target, var)
    layer = made(bpref.gaussian, log_variance=False, full=full, reduction=reduction)
    return Ours(layer, ((m, v), y))


def poisson(input, target, log_input=True, full=False, eps=1e-8, reduction="mean"):
    """PyTorch adds eps to a rate in its logarithm alone."""
    layer = made(bpref.poisson, log_input, full, reduction)
    if log_input:
        return Ours(layer, (input, target))
    added = eps * (input.numel() if reduction == "sum" else 1)
    return Ours(layer, (input + eps, target), back=lambda J: J - added)


def kl_div(input, target, reduction="mean", log_target=False):
    """PyTorch's terms are those of single classes, ours of positions: here each element is one, with one class."""
    reduction = "batch_mean" if reduction == "batchmean" else reduction
    return Ours(made(bpref.kl_divergence, log_target, reduction), (input[..., None], target[..., None]))


def weighted(make, input, target, weight, **hyper):
    x = (input, target) if weight is None else (input, target, weight.broadcast_to(input.shape))
    return Ours(made(make, **hyper), x)


def bce(input, target, weight=None, reduction="mean"):
    return weighted(bpref.binary_cross_entropy, input, target, weight, reduction=reduction)


def bce_with_logits(input, target, weight=None, pos_weight=None, reduction="mean"):
    hyper = {} if pos_weight is None else {"positive_weight": tuple(pos_weight.tolist())}
    if any(w <= 0 for w in hyper.get("positive_weight", ())):
        return "a weight that is not positive"
    return weighted(bpref.sigmoid_cross_entropy, input, target, weight, reduction=reduction, **hyper)


def multilabel_soft_margin(input, target, weight=None, reduction="mean"):
    """PyTorch's terms are means over the classes."""
    ours = weighted(bpref.sigmoid_cross_entropy, input, target, weight, reduction="none")
    return ours._replace(back=lambda J: J.mean())


def triplet(anchor, positive, negative, margin=1.0, p=2, eps=1e-6, swap=False, reduction="mean"):
    return Ours(made(bpref.triplet, margin, False, reduction, swap, eps), (anchor, positive, negative))


def triplet_with_distance(anchor, positive, negative, distance_function=None, margin=1.0, swap=False, reduction="mean"):
    return triplet(anchor, positive, negative, margin, swap=swap, reduction=reduction)


def cosine_embedding(a, b, label, margin=0.0, reduction="mean"):
    return Ours(made(bpref.cosine_embedding, margin, reduction), (a, b, label.detach().to(torch.int64)))


def hinge_embedding(input, label, margin=1.0, reduction="mean"):
    if (label.abs() != 1).any():
        return "a label that is no sign"
    return Ours(made(bpref.hinge_embedding, margin, reduction), (input, label.detach().to(torch.int64)))


def margin_ranking(x1, x2, sign, margin=0.0, reduction="mean"):
    return Ours(made(bpref.margin_ranking, margin, reduction), (x1, x2, sign))


def multi_margin(input, label, p=1, margin=1.0, weight=None, reduction="mean"):
    """PyTorch's weights may be negative, which makes the terms so."""
    if margin < 0:
        return "a negative margin"
    scores = input.reshape(1, -1) if input.ndim < 2 else input
    label = label.reshape(-1)
    if weight is None:
        return Ours(made(bpref.multiclass_hinge, margin, p == 2, reduction=reduction), (scores, label))
    layer = made(bpref.multiclass_hinge, margin, p == 2, reduction="none", class_weights=_weights(weight.abs()))
    of_terms = {"mean": torch.mean, "sum": torch.sum, "none": torch.clone}[reduction]
    return Ours(layer, (scores, label), back=lambda J: of_terms(weight.sign()[label] * J))


def multilabel_margin(input, labels, reduction="mean"):
    """PyTorch has the classes of an example in a list that -1 ends, and counts one as often as it is named."""
    scores, named = (v.reshape(1, -1) if v.ndim < 2 else v for v in (input, labels))
    times = torch.zeros(scores.shape, dtype=torch.int64)
    for of_one, own in zip(named.tolist(), times, strict=True):
        for c in of_one[: of_one.index(-1)] if -1 in of_one else of_one:
            own[c] += 1
    back = (lambda J: J.reshape(())) if input.ndim < 2 else (lambda J: J)
    return Ours(made(bpref.multilabel_margin, reduction=reduction), (scores, times), back=back)


def _weights(weight):
    return None if weight is None else tuple(weight.tolist())


def _classes_last(v):
    return v.movedim(1, -1) if v.ndim > 1 else v


def nll(input, label, weight=None, ignore_index=-100, reduction="mean"):
    if weight is not None and (weight < 0).any():
        return "a negative weight"
    if reduction == "mean" and all(y == ignore_index for y in label.reshape(-1).tolist()):
        return "a mean of nothing, which is NaN"
    layer = made(bpref.negative_log_likelihood, ignore_index, _weights(weight), reduction)
    return Ours(layer, (_classes_last(input), label))


def cross_entropy(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    if weight is not None and (weight < 0).any():
        return "a negative weight"
    is_label = not target.is_floating_point()
    hyper = {"ignored": ignore_index if is_label else None, "class_weights": _weights(weight), "reduction": reduction}
    layer = made(bpref.softmax_cross_entropy, label_smoothing, **hyper)
    return Ours(layer, (_classes_last(input), target if is_label else _classes_last(target)))


def ctc(log_probabilities, labels, frames, lengths, blank=0, reduction="mean", zero_infinity=False):
    """Ours takes logits, of which these are their own; PyTorch's mean is that of each loss by its number of labels."""
    frames, lengths = (torch.as_tensor(v) for v in (frames, lengths))
    layer = made(bpref.ctc, blank, "none" if reduction == "mean" else reduction)
    back = (lambda J: (J / lengths).mean()) if reduction == "mean" else lambda J: J
    return Ours(layer, (log_probabilities.movedim(0, 1), labels, frames, lengths), back=back)


def linear_cross_entropy(
    h, W, target, linear_bias=None, weight=None, reduction="mean", ignore_index=-100, label_smoothing=0.0, **options
):
    if weight is not None and (weight < 0).any():
        return "a negative weight"
    ignored = None if target.is_floating_point() else ignore_index
    hyper = {"smoothing": label_smoothing, "class_weights": _weights(weight), "axes": tuple(W.shape[1:-1])}
    layer = made(bpref.fused_linear_cross_entropy, len(W), linear_bias is not None, reduction, ignored, **hyper)
    return Ours(layer, (h, _classes_last(target) if ignored is None else target), LinearParams(W, linear_bias))


TABLE: Table = {
    "nn.functional.binary_cross_entropy": Row(bce, Outcome(11)),
    "nn.functional.binary_cross_entropy_with_logits": Row(bce_with_logits, Outcome(26)),
    "nn.functional.cosine_embedding_loss": Row(cosine_embedding, Outcome(6)),
    "nn.functional.cross_entropy": Row(cross_entropy, Outcome(15, {"a negative weight": 6})),
    "nn.functional.ctc_loss": Row(ctc, Outcome(12)),
    "nn.functional.gaussian_nll_loss": Row(gaussian, Outcome(324)),
    "nn.functional.hinge_embedding_loss": Row(hinge_embedding, Outcome(9, {"a label that is no sign": 1})),
    "nn.functional.huber_loss": Row(of_pair(bpref.huber), Outcome(9)),
    "nn.functional.kl_div": Row(kl_div, Outcome(16)),
    "nn.functional.l1_loss": Row(of_pair(bpref.absolute), Outcome(6)),
    "nn.functional.linear_cross_entropy": Row(linear_cross_entropy, Outcome(119)),
    "nn.functional.linear_cross_entropy.chunked": Row(linear_cross_entropy, Outcome(133)),
    "nn.functional.linear_cross_entropy.chunked_none": Row(linear_cross_entropy, Outcome(77)),
    "nn.functional.margin_ranking_loss": Row(margin_ranking, Outcome(24)),
    "nn.functional.mse_loss": Row(of_pair(bpref.square, 2.0), Outcome(6)),
    "nn.functional.multi_margin_loss": Row(multi_margin, Outcome(9, {"a negative margin": 1})),
    "nn.functional.multilabel_margin_loss": Row(multilabel_margin, Outcome(6)),
    "nn.functional.multilabel_soft_margin_loss": Row(multilabel_soft_margin, Outcome(4)),
    "nn.functional.nll_loss": Row(nll, Outcome(37, {"a negative weight": 24})),
    "nn.functional.poisson_nll_loss": Row(poisson, Outcome(72)),
    "nn.functional.smooth_l1_loss": Row(smooth_l1, Outcome(8)),
    "nn.functional.soft_margin_loss": Row(of_pair(bpref.soft_margin), Outcome(6)),
    "nn.functional.triplet_margin_loss": Row(triplet, Outcome(7)),
    "nn.functional.triplet_margin_with_distance_loss": Row(triplet_with_distance, Outcome(7)),
}


@pytest.mark.parametrize("name", TABLE)
def test_samples_agree(name):
    assert_as_expected(name, TABLE)

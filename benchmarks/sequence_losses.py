"""CTC, a transducer and a linear-chain CRF at the sizes of speech and of tagging, beside autodiff of the usual form."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from benchmarks.contest import Contest
from bpref.rules.sequence_loss import crf as crf_rule
from bpref.rules.sequence_loss import ctc as ctc_rule
from bpref.rules.sequence_loss import transducer as transducer_rule


def contests() -> list[Contest]:
    return [ctc_of_half_a_thousand_frames(), transducer_of_two_hundred_frames(), crf_of_a_tagger()]


def ctc_of_half_a_thousand_frames(B: int = 16, T: int = 500, U: int = 100, C: int = 128) -> Contest:
    """A character model's batch: the loss and the gradient of the logits."""
    keys = jax.random.split(jax.random.key(0), 4)
    logits = jax.random.normal(keys[0], (B, T, C))
    labels = jax.random.randint(keys[1], (B, U), 1, C)
    frames = jax.random.randint(keys[2], (B,), T - 100, T + 1)
    lengths = jax.random.randint(keys[3], (B,), U // 2, U + 1)
    layer = ctc_rule.ctc()

    def hand(logits, labels, frames, lengths):
        J, cache = layer.forward((), (logits, labels, frames, lengths))
        return jnp.sum(J), layer.backward((), cache, jnp.ones_like(J))[1][0]

    def own(*x):
        return jnp.sum(layer.forward((), x)[0])

    def of_optax(logits, labels, frames, lengths):
        beyond_frames = (jnp.arange(T)[None, :] >= frames[:, None]).astype(logits.dtype)
        beyond_labels = (jnp.arange(U)[None, :] >= lengths[:, None]).astype(logits.dtype)
        return jnp.sum(optax.ctc_loss(logits, beyond_frames, labels, beyond_labels))

    return Contest(
        f"ctc, {B} x {T} frames, {U} labels of {C} classes",
        hand,
        jax.value_and_grad(own),
        {"optax.ctc_loss": jax.value_and_grad(of_optax)},
        (logits, labels, frames, lengths),
        memory_bound=0.5,
        time_bound=0.7,
    )


def transducer_of_two_hundred_frames(B: int = 8, T: int = 200, U: int = 40, V: int = 256) -> Contest:
    """A batch of word pieces: the loss and the gradient of the joint network's logits."""
    keys = jax.random.split(jax.random.key(0), 4)
    logits = jax.random.normal(keys[0], (B, T, U + 1, V))
    labels = jax.random.randint(keys[1], (B, U), 1, V)
    frames = jax.random.randint(keys[2], (B,), T - T // 4, T + 1)
    lengths = jax.random.randint(keys[3], (B,), U // 2, U + 1)
    layer = transducer_rule.transducer()

    def hand(logits, labels, frames, lengths):
        J, cache = layer.forward((), (logits, labels, frames, lengths))
        return jnp.sum(J), layer.backward((), cache, jnp.ones_like(J))[1][0]

    def own(*x):
        return jnp.sum(layer.forward((), x)[0])

    def label_by_label(logits, labels, frames, lengths):
        return jnp.sum(transducer_rule.reference((), (logits, labels, frames, lengths)))

    return Contest(
        f"transducer, {B} x {T} frames, {U} labels of {V} classes",
        hand,
        jax.value_and_grad(own),
        {
            "a scan over the frames": jax.value_and_grad(_frame_by_frame),
            "label by label": jax.value_and_grad(label_by_label),
        },
        (logits, labels, frames, lengths),
        memory_bound=1.0,
        time_bound=1.0,
    )


def _frame_by_frame(logits, labels, frames, lengths):
    """The transducer's alpha a frame at a time, the sum along its labels by cumulative sums in log space."""
    B = logits.shape[0]
    log_p = jax.nn.log_softmax(logits)
    b = jnp.moveaxis(log_p[..., 0], 1, 0)
    y = jnp.moveaxis(jnp.take_along_axis(log_p[:, :, :-1], labels[:, None, :, None], 3)[..., 0], 1, 0)
    emitted = jnp.pad(jnp.cumsum(y, 2), ((0, 0), (0, 0), (1, 0)))

    def frame(f, of_frame):
        t, b_before, emitted = of_frame
        new = emitted + lax.cumlogsumexp(f + b_before - emitted, axis=1)
        return jnp.where((t < frames)[:, None], new, f), None

    f, _ = lax.scan(frame, emitted[0], (jnp.arange(1, len(b)), b[:-1], emitted[1:]))
    ends = f + b[frames - 1, jnp.arange(B)]
    return -jnp.sum(jnp.take_along_axis(ends, lengths[:, None], 1))


def crf_of_a_tagger(B: int = 32, T: int = 128, K: int = 32) -> Contest:
    """A tagger's batch: the loss and the gradients of the emissions and of the chain's weights."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (B, T, K))
    tags = jax.random.randint(keys[1], (B, T), 0, K)
    lengths = jax.random.randint(keys[2], (B,), T // 2, T + 1)
    params = crf_rule.CRFParams(jax.random.normal(keys[3], (K, K)), jnp.zeros(K), jnp.zeros(K))
    layer = crf_rule.crf()

    def hand(params, x, tags, lengths):
        J, cache = layer.forward(params, (x, tags, lengths))
        dparams, dx = layer.backward(params, cache, jnp.ones_like(J))
        return jnp.sum(J), (dparams, dx[0])

    def own(params, *x):
        return jnp.sum(layer.forward(params, x)[0])

    def naive(params, x, tags, lengths):
        return jnp.sum(crf_rule.reference(params, (x, tags, lengths)))

    return Contest(
        f"crf, {B} x {T} frames, {K} tags",
        hand,
        jax.value_and_grad(own, argnums=(0, 1)),
        {"the usual scan": jax.value_and_grad(naive, argnums=(0, 1))},
        (params, x, tags, lengths),
        memory_bound=1.0,
        time_bound=1.0,
    )

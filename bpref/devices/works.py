"""What is compiled under the name of a rule or model: forward and backward, by hand and by autodiff of the same."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpref.checks.hyperparameters import require_size
from bpref.compose import objective
from bpref.devices.compiling import Compiled, compile_for, devices_of
from bpref.layer import Layer, With, backpropagate, begin
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GPT_PRESETS, GptConfig
from bpref.models.lenet import lenet
from bpref.models.mixture import MIXTURE_PRESETS, MixtureConfig, mixture_objective
from bpref.models.rearranged import Generative
from bpref.models.resnet import RESNETS, resnet
from bpref.models.text import text_model
from bpref.models.unet import diffusion
from bpref.models.vae import variational_autoencoder
from bpref.models.vit import vit
from bpref.nearest import meant
from bpref.rule import Case, Rule
from bpref.rules import KINDS, RULES, other_names
from bpref.rules.loss.softmax_cross_entropy import softmax_cross_entropy
from bpref.verify.oracle import as_cotangent, with_cotangents
from bpref.verify.rules.draw import Example, draw

SEED = 0

MODEL = "model"
"""The kind of what is no rule."""


class Work(NamedTuple):
    """A program in two forms.

    Attributes:
      kind: that of the rule, or "model".
      size: the rule's case, or the shape of a model's input.
      by_hand, by_autodiff: functions of `arguments`, trees of specifications.
      batch: which of the arguments have one entry for each example, in their first axis.
    """

    kind: str
    size: str
    by_hand: Callable[..., PyTree]
    by_autodiff: Callable[..., PyTree]
    arguments: tuple[PyTree, ...]
    batch: tuple[int, ...]


class Beside(NamedTuple):
    """By hand beside autodiff of the same forward; what does not fit into the device's memory is said in words."""

    kind: str
    size: str
    hand: Compiled | str
    autodiff: Compiled | str


class Settings(NamedTuple):
    """What may be said of a model: examples (on each device), length of a sequence, recomputation, dtype, kernels."""

    batch: int | None = None
    length: int | None = None
    remat: bool = False
    dtype: str = "float32"
    implementation: str = "xla"


USUAL = Settings()


def timed_case(rule: Rule) -> Case:
    """The case that says with which sizes it is timed, and compiled."""
    return next(case for case in rule.cases if case.timed)


def timed_example(rule: Rule) -> Example:
    """That case, drawn."""
    case = timed_case(rule)
    return draw(rule, case, case.timed, SEED)


def sweep_by_hand(layer: Layer) -> Callable[..., PyTree]:
    """`(params, x, dy)` to y and the cotangents of params and x, as the layer computes them."""

    def sweep(params, x, dy):
        y, cache = layer.forward(params, x)
        return y, layer.backward(params, cache, dy)

    return sweep


def sweep_by_autodiff(f: Callable[[PyTree, PyTree], PyTree]) -> Callable[..., PyTree]:
    """The same of y = f(params, x), by autodiff."""

    def sweep(params, x, dy):
        y, cotangents = with_cotangents(f, params, x)
        return y, cotangents(as_cotangent(dy, y))

    return sweep


def output_of(layer: Layer) -> Callable[[PyTree, PyTree], PyTree]:
    """Its forward without the cache."""
    return lambda params, x: layer.forward(params, x)[0]


def beside(name: str, target: str, settings: Settings = USUAL) -> Beside:
    """Compile both forms of a rule or model for a target; over all its devices, where it names a topology.

    Then the examples lie on all devices, each with its part, where their number divides by that of the devices, and
    parameters are whole on each.
    """
    return both_forms(work_of(name, settings, len(devices_of(target))), target)


def both_forms(work: Work, target: str) -> Beside:
    """Both forms of a work, compiled as `beside` says."""
    devices = devices_of(target)
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    in_parts = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def placed(v):
        parts = v.shape and v.shape[0] % len(devices) == 0 and len(devices) > 1
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=in_parts if parts else None)

    given = [jax.tree.map(placed, v) if i in work.batch else v for i, v in enumerate(work.arguments)]

    def compiled(f):
        try:
            return compile_for(target, f, *given)
        except MemoryError as error:
            return str(error)
        except RuntimeError as error:  # of the compiler itself, or of JAX, which has not all for every device
            return f"the compiler fails: {str(error).splitlines()[0][:200]}"

    return Beside(work.kind, work.size, compiled(work.by_hand), compiled(work.by_autodiff))


def work_of(name: str, settings: Settings = USUAL, devices: int = 1) -> Work:
    """What the name of a rule or model, however it is written, stands for."""
    name = known(name)
    if name in RULES:
        return _of_rule(RULES[name], settings.dtype)
    return of_objective(*MODELS[name](settings, devices), settings.dtype)


def known(name: str) -> str:
    """The name as `RULES` or `MODELS` has it; `ValueError` where neither has."""
    return meant("rule or model", name, [*RULES, *MODELS], other_names())


def _of_rule(rule: Rule, dtype: str) -> Work:
    example = timed_example(rule)
    kind = next(kind for kind, names in KINDS.items() if rule.name in names)
    arguments = _specifications((example.params, example.x, example.dy), dtype)
    forms = sweep_by_hand(example.layer), sweep_by_autodiff(output_of(example.layer))
    return Work(kind, timed_case(rule).name, *forms, arguments, batch=(1, 2))


def of_objective(layer: Layer, x: PyTree, dtype: str = "float32") -> Work:
    """J and the gradient of params, of an objective and the specifications of its x."""
    params, state = jax.eval_shape(lambda: begin(layer, jax.random.key(SEED), x))
    has_state = bool(jax.tree.leaves(state))

    def cost(params, x, state):
        """J; of a layer with state, that first."""
        y = output_of(layer)(params, With(x, state) if has_state else x)
        return y[0] if has_state else y

    def by_hand(params, x, state):
        y, dparams, _ = backpropagate(layer, params, With(x, state) if has_state else x)
        return (y[0] if has_state else y), dparams

    def by_autodiff(params, x, state):
        J, cotangents = with_cotangents(lambda params: cost(params, x, state), params)
        return J, cotangents(jnp.ones_like(J))[0]

    shapes = " and ".join(" x ".join(map(str, v.shape)) for v in jax.tree.leaves(x)[:1])
    arguments = _specifications((params, x, state), dtype)
    return Work(MODEL, shapes, by_hand, by_autodiff, arguments, batch=(1,))


def _specifications(tree: PyTree, dtype: str) -> PyTree:
    """Real numbers in `dtype`, complex ones in complex64."""

    def one(v):
        kind = np.complex64 if jnp.iscomplexobj(v) else dtype if jnp.issubdtype(v.dtype, jnp.floating) else v.dtype
        return jax.ShapeDtypeStruct(v.shape, kind)

    return jax.tree.map(one, tree)


Made = tuple[Layer, PyTree]
"""An objective and the specifications of its x."""


def _text(
    make: Callable[[Settings], Layer], examples: int, length: int, longest: float, settings: Settings, devices: int
) -> Made:
    B = devices * require_size("compile", "batch", settings.batch or examples)
    T = require_size("compile", "length", settings.length or length)
    if longest < T:
        raise ValueError(f"compile: length is {T}, expected at most {longest:g}, the model's context")
    ids = jax.ShapeDtypeStruct((B, T), jnp.int32)
    return make(settings), (ids, ids)


def _gpt(config: GptConfig, examples: int, length: int) -> Callable[[Settings, int], Made]:
    longest = config.context if config.rope is None else math.inf
    return partial(
        _text,
        lambda chosen: gpt_objective(config, chosen.remat, implementation=chosen.implementation),
        examples,
        length,
        longest,
    )


def _mixture(config: MixtureConfig, examples: int, length: int) -> Callable[[Settings, int], Made]:
    return partial(_text, lambda chosen: mixture_objective(config, chosen.remat), examples, length, math.inf)


def _blocks(name: str) -> Callable[[Settings, int], Made]:
    V, T, d = 256, 128, 128
    return partial(_text, lambda chosen: text_model(name, V, T, d, 2, 4).objective, 8, T, math.inf)


def _images(network: Callable[[], Layer], examples: int, image: tuple[int, ...]) -> Callable[[Settings, int], Made]:
    def make(settings, devices):
        B = devices * require_size("compile", "batch", settings.batch or examples)
        images = jax.ShapeDtypeStruct((B, *image), settings.dtype), jax.ShapeDtypeStruct((B,), jnp.int32)
        return objective(network(), softmax_cross_entropy()), images

    return make


def _generative(
    make_model: Callable[..., Generative], examples: int, image: tuple[int, ...], **sizes: int
) -> Callable[[Settings, int], Made]:
    def make(settings, devices):
        B = devices * require_size("compile", "batch", settings.batch or examples)
        images = jax.ShapeDtypeStruct((B, *image), settings.dtype)
        model = make_model(image, **sizes)
        return objective(model.network, model.loss), (images, images)

    return make


SMALL: Mapping[str, Callable[[Settings, int], Made]] = {
    "gpt": _gpt(GptConfig(8192, 256, 8, 4, 680, 256), 4, 256),
    "mixture": _mixture(MixtureConfig(8192, 256, 4, 4, 512), 4, 256),
    "lstm-text": _blocks("lstm"),
    "mamba-text": _blocks("mamba"),
    "lenet": _images(lenet, 64, (28, 28, 1)),
    "resnet18": _images(lambda: resnet("resnet18", 1000), 8, (224, 224, 3)),
    "vit": _images(lambda: vit(64, 4, 10, 192, 12, 3), 64, (32, 32, 3)),
    "variational-autoencoder": _generative(variational_autoencoder, 128, (28, 28, 1), latent=16),
    "diffusion": _generative(diffusion, 16, (32, 32, 3), width=64, depth=2),
}
"""Models of a size that fits everywhere: `(settings, devices) -> (objective, x)`."""

GPTS = ("gpt", *GPT_PRESETS)
"""Those that have kernels."""

MODELS: Mapping[str, Callable[[Settings, int], Made]] = {
    **SMALL,
    **{name: _gpt(config, 1, min(1024, config.context)) for name, config in GPT_PRESETS.items()},
    **{name: _mixture(config, 1, 1024) for name, config in MIXTURE_PRESETS.items()},
    **{
        name: _images(partial(resnet, name, 1000), 8, (224, 224, 3))
        for name in RESNETS
        if name not in SMALL
    },
}  # fmt: skip
"""These, and those of published sizes: sequences of 1,024 tokens, images of 224 x 224."""

"""load: a trained network and its params again, of what a run left on disk."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpref.layer import Layer, begin
from bpref.models.images import GENERATIVE, IMAGE_MODELS, generative
from bpref.models.text import TEXT_MODELS, text_model
from bpref.naming import flat_names
from bpref.train.data.text import Tokenizer, tokenizer_of
from bpref.train.keeping.begun import Json, json_object
from bpref.train.keeping.record import METRICS, PARAMS, STATE
from bpref.train.network import fully_connected
from bpref.train.step import is_key


class Loaded(NamedTuple):
    """A network as it was trained.

    Attributes:
      network: the layer; of a model of text, ids (B, T) to logits (B, T, V).
      params: its params, NumPy arrays.
      state: its running statistics, and PRNG keys of 0; `()` where it has neither.
      settings: how it was trained, a dict; of a table, `units` says how its columns were scaled.
      tokenizer: of a model of text, else None.
    """

    network: Layer
    params: PyTree
    state: PyTree
    settings: Json
    tokenizer: Tokenizer | None


def load(run: str | Path) -> Loaded:
    """The network of a run, its directory or the `params.safetensors` in it.

    Example:
      >>> run = bpref.load("run")  # of `bpref train gpt --out run`
      >>> logits, _ = run.network.forward(run.params, run.tokenizer.encode("def ")[None])

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not of `bpref train`; arrays are missing, too many or of other shapes, and which.
    """
    file = Path(run)
    file = file / PARAMS if file.is_dir() else file
    if not file.is_file():
        is_under_way = Path(run).is_dir() and (Path(run) / METRICS).exists()
        why = "the run has not come to its end; the same command with --resume goes on with it"
        why = why if is_under_way else f"there is no {PARAMS}, as `bpref train --out {run}` leaves it"
        raise FileNotFoundError(f"{run}: {why}")
    arrays, settings = _read(file)
    try:
        _require_sizes(settings)
        network, x, tokenizer = _network_of(settings)
        like = jax.eval_shape(lambda key: begin(network, key, x), jax.random.key(0))
    except Exception as error:  # whatever the settings are: those of a stranger, or of another version
        raise ValueError(f"{file}: its settings make no network: {error!r}") from error
    params, state = _fitted(file, like, arrays)
    return Loaded(network, params, state, settings, tokenizer)


def _read(file: Path) -> tuple[dict[str, np.ndarray], Json]:
    """The arrays and the settings of a file; nothing in it is run."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            settings = json_object((opened.metadata() or {})["settings"])
            return {name: opened.get_tensor(name) for name in opened.keys()}, settings  # noqa: SIM118, it is no dict
    except SafetensorError as error:
        raise ValueError(f"{file}: it is no whole safetensors file ({error})") from error
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file}: it has no settings, so it is not of `bpref train`") from error


SIZES = {"layers": 2**24, "width": 2**24, "context": 2**24, "ids": 2**24, "image": 2**24, "latent": 2**24}
SIZES |= dict.fromkeys(("depth", "heads", "experts", "noise_steps"), 2**14)
"""The largest that a setting may be: a network of more is not even described in reasonable time."""


def _require_sizes(settings: Json) -> None:
    for name, largest in SIZES.items():
        v = settings.get(name)
        for n in v if isinstance(v, list) else [0 if v is None else v]:
            if not isinstance(n, int) or n > largest:
                raise ValueError(f"{name} is {n!r}, expected an integer up to {largest}")


def _network_of(settings: Json) -> tuple[Layer, jax.ShapeDtypeStruct, Tokenizer | None]:
    """The network, the specification of an input, and the tokenizer."""
    if settings.get("model") in TEXT_MODELS:
        sizes = {name: settings[name] for name in ("context", "width", "depth", "heads")}
        model = text_model(settings["model"], settings["ids"], **sizes, experts=settings.get("experts", 4))
        x = jax.ShapeDtypeStruct((1, settings["context"]), jnp.int32)
        return model.network, x, tokenizer_of(settings["tokenizer"])
    if settings.get("model") in IMAGE_MODELS:
        image, classes = settings["image"], len(settings["classes"])
        network = IMAGE_MODELS[settings["model"]](image, settings["depth"], settings["width"], classes)
        return network, jax.ShapeDtypeStruct((1, *image), jnp.float32), None
    if settings.get("model") in GENERATIVE:
        image = settings["image"]
        network = generative(settings["model"], image, settings).network
        return network, jax.ShapeDtypeStruct((1, *image), jnp.float32), None
    units = settings["units"]
    network = fully_connected(settings["layers"], settings["activation"], max(1, len(units["classes"])))
    return network, jax.ShapeDtypeStruct((1, len(units["features"])), jnp.float32), None


def _fitted(file: Path, like: PyTree, arrays: dict[str, np.ndarray]) -> PyTree:
    """The arrays as params and state, `like` both; all of them, or none."""
    params, state = like
    expected = flat_names(params) | {f"{STATE}{name}": v for name, v in flat_names(state).items() if not is_key(v)}
    missing, extra = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
    wrong = [
        f"{name} has shape {arrays[name].shape}, expected {v.shape}"
        for name, v in expected.items()
        if name in arrays and arrays[name].shape != v.shape
    ]
    wrong += [
        f"{name} has dtype {arrays[name].dtype}, expected {v.dtype}"
        for name, v in expected.items()
        if name in arrays and jnp.issubdtype(arrays[name].dtype, jnp.floating) != jnp.issubdtype(v.dtype, jnp.floating)
    ]
    faults = [f"{what} {', '.join(names)}" for what, names in (("no", missing), ("unknown", extra)) if names] + wrong
    if faults:
        raise ValueError(f"{file}: {'; '.join(faults)}")
    found = iter(arrays[name] for name in expected)
    return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype) if is_key(v) else next(found), like)

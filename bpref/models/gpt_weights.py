"""gpt_weights: the weights of others by the names that they are published under, and back.

Published are the tensors of GPT-2 and those of Llama, which Mistral, Mixtral, Qwen, SmolLM and Gemma 2 share. Each
is some rows of one array of our params, in one block; GPT-2 has its matrices the other way, inputs first. One table of
places, read from left to right, loads, and from right to left, saves.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.models.gpt import gpt
from bpref.models.gpt_config import GPT_PRESETS, GptConfig
from bpref.models.gpt_published import kind_of, published_of
from bpref.models.mixture import MIXTURE_PRESETS, MixtureConfig, mixture
from bpref.models.presets import preset
from bpref.naming import name_of

if TYPE_CHECKING:
    from safetensors import safe_open

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""The files' names; of weights in several files, the first's with `.index.json` after it names them."""

GPT2 = {
    "embed.W": "wte.weight",
    "positions.W": "wpe.weight",
    "blocks.attention.norm.scale": "h.{}.ln_1.weight",
    "blocks.attention.norm.shift": "h.{}.ln_1.bias",
    "blocks.attention.W_qkv": "h.{}.attn.c_attn.weight",
    "blocks.attention.b_qkv": "h.{}.attn.c_attn.bias",
    "blocks.attention.W_o": "h.{}.attn.c_proj.weight",
    "blocks.attention.b_o": "h.{}.attn.c_proj.bias",
    "blocks.mlp.norm.scale": "h.{}.ln_2.weight",
    "blocks.mlp.norm.shift": "h.{}.ln_2.bias",
    "blocks.mlp.W_in": "h.{}.mlp.c_fc.weight",
    "blocks.mlp.b_in": "h.{}.mlp.c_fc.bias",
    "blocks.mlp.W_out": "h.{}.mlp.c_proj.weight",
    "blocks.mlp.b_out": "h.{}.mlp.c_proj.bias",
    "norm.scale": "ln_f.weight",
    "norm.shift": "ln_f.bias",
    "head.W": "lm_head.weight",
}
LLAMA = {
    "embed.W": "model.embed_tokens.weight",
    "blocks.attention.norm.scale": "model.layers.{}.input_layernorm.weight",
    "blocks.attention.W_qkv": "model.layers.{}.self_attn.q_proj|k_proj|v_proj.weight",
    "blocks.attention.b_qkv": "model.layers.{}.self_attn.q_proj|k_proj|v_proj.bias",
    "blocks.attention.W_o": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.attention.b_o": "model.layers.{}.self_attn.o_proj.bias",
    "blocks.mlp.norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.mlp.W_in": "model.layers.{}.mlp.up_proj|gate_proj.weight",
    "blocks.mlp.b_in": "model.layers.{}.mlp.up_proj|gate_proj.bias",
    "blocks.mlp.W_out": "model.layers.{}.mlp.down_proj.weight",
    "blocks.mlp.b_out": "model.layers.{}.mlp.down_proj.bias",
    "norm.scale": "model.norm.weight",
    "head.W": "lm_head.weight",
}
LLAMA |= {
    "blocks.attention.attention.norm.q_scale": "model.layers.{}.self_attn.q_norm.weight",
    "blocks.attention.attention.norm.k_scale": "model.layers.{}.self_attn.k_norm.weight",
    "blocks.mlp.mlp.W_in": LLAMA["blocks.mlp.W_in"],
    "blocks.mlp.mlp.W_out": LLAMA["blocks.mlp.W_out"],
} | {f"blocks.attention.attention.W_{v}": f"model.layers.{{}}.self_attn.{v}_proj.weight" for v in "qkvo"}
MIXTRAL = LLAMA | {
    "blocks.experts.norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.experts.experts.router.W": "model.layers.{}.block_sparse_moe.gate.weight",
    "blocks.experts.experts.U": "model.layers.{}.block_sparse_moe.experts.{}.w3|w1.weight",
    "blocks.experts.experts.V": "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
}
GEMMA2 = LLAMA | {
    "blocks.attention.scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.mlp.norm.scale": "model.layers.{}.pre_feedforward_layernorm.weight",
    "blocks.mlp.scale": "model.layers.{}.post_feedforward_layernorm.weight",
}
"""For each array of params the tensors that it is made of; `a|b` are two, one after the other along the rows.

The braces stand for the block, and then the expert: the array's first axes.
"""

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

CONSTANTS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
"""Masks and frequencies, which some files have among the weights."""


WITHOUT_NAME = ("shared", "network", "body", "x", "tokens", "product")
"""What combinators call the parts of a network whose arrays are named without them."""

Shapes = dict[str, tuple[int, ...]]


class Place(NamedTuple):
    """Where a tensor stands: the array of params by its path, in its first axes, its rows; and if inputs come first."""

    array: str
    first: tuple[int, ...]
    rows: slice
    transposed: bool
    shape: tuple[int, ...]


def load_weights(config: GptConfig | MixtureConfig | str, path: str | Path, dtype: DTypeLike | None = None) -> PyTree:
    """The params of `gpt(config)`, or of `mixture(config)`, that a published file has.

    It is read by `safetensors`, which comes with the extra `cli`.

    Args:
      config: as of `gpt` or `mixture`; `config_of(path)` reads it.
      path: a file of safetensors, the index of several, or the directory of one of them.
      dtype: of the params; that of the file where left out.

    Returns:
      Params of `gpt(config)` and of `gpt_objective(config)`, or of `mixture(config)` and its objective.

    Raises:
      OSError: there is no such file.
      ValueError: a file is none of safetensors; tensors are missing, too many, or of other shapes, each of which is
        named; they are of several dtypes, and none is given; no layout has the config.

    Example:
      >>> config = GptConfig(vocabulary=256, width=64, depth=2, heads=4, hidden=128, context=32)
      >>> params = gpt(config).init(jax.random.key(0), jnp.zeros((1, 32), jnp.int32))
      >>> save_weights(config, params, "llama")  # llama/model.safetensors and llama/config.json
      >>> params = load_weights(config_of("llama"), "llama")
      >>> params["body"]["embed"].W.shape
      (256, 64)
    """
    config, path = _as_config(config), Path(path)
    tied = isinstance(config, GptConfig) and config.tied
    drawn, places = _drawn(config), places_of(config)
    table, head = _names(config)["embed.W"], "lm_head.weight"
    files = [_opened(file) for file in _files(path)]
    found = {_name(key): (file, key) for file in files for key in file.keys() if not CONSTANTS.search(key)}  # noqa: SIM118, no dict
    dtypes = _require_tensors(
        path,
        {name: file.get_slice(key) for name, (file, key) in found.items()},
        {name: place.shape for name, place in places.items()},
        {head: places[table].shape} if tied else {},
    )

    def tensor(name):
        file, key = found[name]
        return file.get_tensor(key)

    if tied and head in found and not np.array_equal(tensor(head), tensor(table)):
        raise ValueError(f"{path}: {head} is another array than {table}, and this config's head is tied to it")
    if dtype is None and len(dtypes) > 1:
        raise ValueError(f"{path} holds {' and '.join(sorted(map(str, dtypes)))}; name one of them as dtype")
    dtype = dtypes.pop() if dtype is None else jnp.dtype(dtype)
    arrays = {array: np.empty(v.shape, dtype) for array, v in _by_array(drawn)}
    for name, place in places.items():
        v = tensor(name)
        arrays[place.array][(*place.first, place.rows)] = v.T if place.transposed else v
    return jax.tree.unflatten(
        jax.tree.structure(drawn), [jnp.asarray(arrays.pop(array)) for array, _ in _by_array(drawn)]
    )


def save_weights(config: GptConfig | MixtureConfig | str, params: PyTree, path: str | Path) -> None:
    """Write params in the published layout: `model.safetensors` and `config.json` in a directory.

    Args:
      config: as of `gpt` or `mixture`.
      params: its params.
      path: the directory, made where there is none.

    The example is that of `load_weights`.

    Raises:
      ValueError: params are not those of the config; no layout has the config.
      FileExistsError: one of the files is there already.
    """
    from safetensors.numpy import save_file

    config, path = _as_config(config), Path(path)
    places, drawn = places_of(config), _drawn(config)
    arrays, shapes = dict(_by_array(params)), {array: v.shape for array, v in _by_array(drawn)}
    wrong = [a for a in shapes | arrays if a not in arrays or jnp.shape(arrays[a]) != shapes.get(a)]
    if wrong:
        raise ValueError(f"save_weights: {', '.join(wrong)} of params are not as the network of this config has them")
    for file in (path / WEIGHTS, path / CONFIG):
        if file.exists():
            raise FileExistsError(f"{file} exists already; name a directory without it")
    tensors = {}
    for name, place in places.items():
        v = np.asarray(arrays[place.array])[(*place.first, place.rows)]
        tensors[name] = np.ascontiguousarray(v.T if place.transposed else v)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    (path / CONFIG).write_text(json.dumps(published_of(config, arrays["embed.W"].dtype), indent=2) + "\n")


def _as_config(config: GptConfig | MixtureConfig | str) -> GptConfig | MixtureConfig:
    if isinstance(config, MixtureConfig):
        return config
    return preset("gpt", config, GptConfig, GPT_PRESETS | MIXTURE_PRESETS)


def _drawn(config: GptConfig | MixtureConfig) -> PyTree:
    """The params' shapes."""
    network = mixture(config) if isinstance(config, MixtureConfig) else gpt(config)
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))


def _by_array(params: PyTree) -> Iterator[tuple[str, Array]]:
    """The arrays by their paths, wherever a combinator has them; a group's blocks by their numbers in it."""
    for path, v in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [n for n in name_of(path).split(".") if n not in WITHOUT_NAME]
        before = ["", *names]
        yield ".".join(n for i, n in enumerate(names) if before[i] == "blocks" or not n.isdigit()), v


def _names(config: GptConfig | MixtureConfig) -> dict[str, str]:
    return {"gpt2": GPT2, "gemma2": GEMMA2, "mixtral": MIXTRAL}.get(kind_of(config), LLAMA)


def places_of(config: GptConfig | MixtureConfig) -> dict[str, Place]:
    """The place of each tensor by its name."""
    D, group = (config.D, config.group) if isinstance(config, GptConfig) else (config.width // config.heads, (None,))
    K = (config.kv_heads or config.heads) * D
    sizes = {"q_proj": config.heads * D, "k_proj": K, "v_proj": K}
    sizes |= dict.fromkeys(("up_proj", "gate_proj", "w1", "w3"), config.hidden)
    places = {}
    for array, v in _by_array(_drawn(config)):
        place = re.match(r"blocks\.(\d+)\.", array)
        names = _names(config)[array if place is None else f"blocks.{array[place.end() :]}"]
        before, *several, after = re.split(r"(\w+(?:\|\w+)+)", names) if "|" in names else (names, "")
        first, shape = v.shape[: names.count("{}")], v.shape[names.count("{}") :]
        transposed = ".c_" in names and len(shape) == 2
        for at in np.ndindex(first):
            start, number = 0, [at[0] * len(group) + int(place[1] if place else 0), *at[1:]] if at else []
            for part in several[0].split("|") if several else ("",):
                rows = sizes.get(part, shape[0])
                one = (rows, *shape[1:])
                name = f"{before}{part}{after}".format(*number)
                rows_of = slice(start, start + rows)
                places[name] = Place(array, at, rows_of, transposed, one[::-1] if transposed else one)
                start += rows
    return places


def _files(path: Path) -> list[Path]:
    """The files that hold the tensors."""
    if path.is_dir():
        choices = (path / WEIGHTS, path / f"{WEIGHTS}.index.json")
        path = next((file for file in choices if file.exists()), choices[0])
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix != ".json":
        return [path]
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of safetensors, which names a file for each tensor") from error
    return [path.parent / name for name in sorted(names)]


def _opened(file: Path) -> "safe_open":
    """A file of safetensors; `ValueError` for what is none."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "np")
    except SafetensorError as error:
        raise ValueError(f"{file} is no file of safetensors: {error}") from error


def _name(key: str) -> str:
    """GPT-2's names as they were published; some programs put the name of the whole before them."""
    return key.removeprefix("transformer.")


def _require_tensors(path: Path, found: dict[str, Any], expected: Shapes, optional: Shapes) -> set[np.dtype]:
    """The dtypes; raises `ValueError` that names every tensor that is missing, too many, misshapen or of integers."""
    wrong = [f"{name} is missing, {shape}" for name, shape in expected.items() if name not in found]
    for name, v in found.items():
        shape, wanted = tuple(v.get_shape()), (expected | optional).get(name)
        if wanted is None:
            wrong.append(f"{name} is one too many, {shape}")
        elif shape != wanted:
            wrong.append(f"{name} has shape {shape}, expected {wanted}")
        elif v.get_dtype() not in DTYPES:
            wrong.append(f"{name} has dtype {v.get_dtype()}, expected one of {', '.join(DTYPES)}")
    if wrong:
        raise ValueError(f"{path} does not hold the weights of this config: {'; '.join(wrong)}")
    return {jnp.dtype(DTYPES[v.get_dtype()]) for v in found.values()}

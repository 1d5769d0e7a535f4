"""Files that nobody wrote: those that a reader takes, those that something has happened to, and noise."""

import gzip
import io
import json
import struct
import zipfile

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save as save_safetensors

from bpref.train.data import mapped


@st.composite
def damaged(draw, whole: st.SearchStrategy[bytes]) -> bytes:
    """A file as it is to be, with up to three things that happen to files, or noise in its place."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(("flip", "cut", "insert", "lose", "repeat"))):
            case "flip" if at < len(content):
                content[at] ^= draw(st.integers(1, 255))
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "lose":
                del content[at : at + draw(st.integers(1, 16))]
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 16))]
    return bytes(content)


NUMBERS = ["1", "2.5", "-3", "1e3", "0", "-0", "1e16", "+4", ".5", "5.", " 7 "]
NONE = ["1e999", "nan", "inf", "NA", "1_000", "٣", "0x1", "1,5", "cat", "dog", '"', "'", '"a', "é", "²", "\0", "--", ""]
CELLS = st.sampled_from(NUMBERS + NONE)
"""What may stand in a table, and what may not."""


@st.composite
def tables(draw) -> bytes:
    separator = draw(st.sampled_from(",;\t"))
    header = draw(st.permutations(["y", "a", "b"]) | st.lists(st.sampled_from(["y", "a", "", "1", "a b"]), min_size=1))
    whole = st.integers(-9, 9).map(str)
    cell = draw(st.sampled_from([whole, whole, whole | CELLS, CELLS]))
    rows = draw(st.lists(st.lists(cell, min_size=len(header), max_size=len(header)), max_size=8))
    return draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(map(separator.join, [header, *rows])).encode()


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
DTYPES = st.sampled_from(["<f8", "<f4", "<f2", "|u1", "<i4", ">i8", "<u2", "|b1", "<c8", "<U2", "|S3", "<M8[s]", "O"])


@st.composite
def arrays(draw) -> np.ndarray:
    dtype, shape = np.dtype(draw(DTYPES)), draw(SHAPES)
    if dtype.kind == "O":
        return np.full(shape, draw(st.sampled_from([None, "x", {}])), object)
    v = np.frombuffer(draw(st.binary(min_size=64, max_size=64)) * 64, np.uint8)
    if dtype.kind == "U":
        return np.full(shape, draw(st.text("ab", max_size=2)), dtype)
    n = int(np.prod(shape))
    v = v[: n * dtype.itemsize]
    return (v % 2).view(bool).reshape(shape) if dtype.kind == "b" else v.view(dtype).reshape(shape)


def npy(v: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asfortranarray(v) if v.size % 2 else v, allow_pickle=True)
    return file.getvalue()


@st.composite
def npz(draw) -> bytes:
    names = draw(st.sampled_from([["X", "y"], ["X", "y", "feature_names"], ["X"], ["y", "z"]]))
    file, N = io.BytesIO(), draw(st.integers(1, 9))
    compression = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in names:
            likely = np.arange(2.0 * N).reshape(N, 2) if name == "X" else np.arange(N) % 2
            archive.writestr(
                f"{name}.npy",
                npy(draw(st.sampled_from([arrays(), st.just(likely), st.just(likely)]).flatmap(lambda v: v))),
            )
    return file.getvalue()


@st.composite
def idx(draw) -> bytes:
    code, shape = draw(st.sampled_from([*mapped.OF_IDX, 7])), draw(SHAPES)
    size = int(np.prod(shape)) * np.dtype(mapped.OF_IDX.get(code, "u1")).itemsize
    content = bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(range(256))[:size]
    return gzip.compress(content, 1, mtime=0) if draw(st.booleans()) else content


JSON = st.recursive(
    st.sampled_from([None, True, False, -1, 0, 1, 2, 3, 1.5, 2**31, 2**63, 1e308, "", "x", "gpt", "bytes", "ids 4"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["epoch", "a", "name"]), inner, max_size=3)
    ),
    max_leaves=4,
)
DEEP = st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"1" * 5000, b'"\\ud800"', b"\xff"])


def changed(*whole: dict) -> st.SearchStrategy[dict]:
    """One of these, with some of its entries another thing, or not there."""

    @st.composite
    def changes(draw):
        one = dict(draw(st.sampled_from(whole)))
        for name in draw(st.lists(st.sampled_from(sorted(one)), max_size=2)):
            if draw(st.booleans()):
                one[name] = draw(JSON)
            else:
                one.pop(name, None)
        return one

    return changes()


def as_json(v: st.SearchStrategy) -> st.SearchStrategy[bytes]:
    return damaged(st.one_of(v, v, v, JSON).map(lambda v: json.dumps(v).encode())) | DEEP


UNITS = {"columns": [], "features": ["a", "b"], "target": "y", "mean": [0, 0], "scale": [1, 1], "classes": []}
UNITS |= {"target_mean": 0.0, "target_scale": 1.0}
MLP = {"layers": [3], "activation": "relu", "loss": "square", "units": UNITS}
OF_TEXT = {"model": "gpt", "context": 4, "width": 4, "depth": 1, "heads": 2, "ids": 4, "tokenizer": "ids 4"}
OF_IMAGES = {"model": "resnet", "depth": 1, "width": 2, "image": [4, 4, 1], "classes": ["0", "1"]}
OF_VAE = {"model": "vae", "depth": 1, "width": 2, "image": [4, 4, 1], "latent": 2, "classes": []}


OF_MLP = {"0.W": (3, 2), "0.b": (3,), "2.W": (1, 3), "2.b": (1,)}


@st.composite
def safetensors(draw) -> bytes:
    named = {
        name: np.full(shape, draw(st.sampled_from([0.0, 1.0, np.nan])), np.float32) for name, shape in OF_MLP.items()
    }
    for name in draw(st.lists(st.sampled_from(sorted(named)), max_size=1)):
        named[name] = draw(arrays().filter(lambda v: v.dtype.kind in "fiu" and v.dtype.isnative))
    made_of = draw(st.one_of(st.just(MLP), changed(MLP, OF_TEXT, OF_IMAGES, OF_VAE), JSON))
    return save_safetensors(named, metadata={"settings": json.dumps(made_of)})


EPOCH = {"epoch": 1, "steps": 4, "train_loss": 0.5, "test_loss": 0.5, "test_score": None, "seconds": 0.1}
EPOCH |= {"gradient_norm": {"0": 0.5, "1": None}}


def lines(v: st.SearchStrategy) -> st.SearchStrategy[bytes]:
    return st.lists(as_json(v), max_size=3).map(b"\n".join)


def tokens() -> st.SearchStrategy[bytes]:
    return st.lists(st.integers(0, 299), min_size=30, max_size=60).map(lambda ids: np.array(ids, "<u2").tobytes())


def texts() -> st.SearchStrategy[bytes]:
    return st.text(min_size=30, max_size=60).map(lambda text: text.encode(errors="replace"))

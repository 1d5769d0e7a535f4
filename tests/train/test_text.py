"""Text as tokens, and a run's network again."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bpref
from bpref.train.data import mapped, text
from bpref.train.data.rows import Rows, examples
from bpref.train.data.text import TEST_SHARE, bits_per_byte, byte_pairs, contexts, read_text, tokenizer_of
from bpref.train.keeping.load import load

TEXT = "the cat sat on the mat; ünïcode — too. " * 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("tokens", ["bytes", "bpe"])
def test_tokens_are_the_text_again_also_when_saved(file, tokens):
    text = read_text(file, 8, tokens, 300)
    again = tokenizer_of(json.loads(json.dumps(text.tokenizer.saved)))
    assert again.vocabulary == text.tokenizer.vocabulary <= (256 if tokens == "bytes" else 300)
    ids = again.encode(TEXT)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, text.tokenizer.encode(TEXT))
    assert again.decode(ids) == TEXT
    assert (len(ids) < len(TEXT.encode())) == (tokens == "bpe")


def test_what_is_held_out_is_the_end_and_nothing_is_learned_of_it(file):
    text = read_text(file, 8, "bpe", 400)
    before = TEXT[: len(TEXT) - int(len(TEXT) * TEST_SHARE)]
    assert text.tokenizer.saved == byte_pairs([before], 400).saved
    ids, ids_test = text.tokenizer.encode(before), text.tokenizer.encode(TEXT[len(before) :])
    np.testing.assert_array_equal(text.train[0].ravel(), ids[: text.train[0].size])
    np.testing.assert_array_equal(text.test[1].ravel(), ids_test[1 : text.test[1].size + 1])
    assert text.bytes_per_token == len(TEXT[len(before) :].encode()) / len(ids_test)


def test_at_each_position_stands_the_id_that_comes_next():
    X, y = contexts(np.arange(10), 3)
    assert X.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert y.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_a_bit_a_byte_is_a_choice_of_two_for_each_byte():
    assert bits_per_byte(np.log(2), 1.0) == pytest.approx(1)
    assert bits_per_byte(np.log(16), 2.0) == pytest.approx(2)


def test_frequencies_alone_need_the_entropy(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("ab" * 50_000)
    assert read_text(path, 8).unigram == read_text(str(path), 8).unigram == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (b"\xff\xfe", {}, "{}: byte 0 is no UTF-8; is it a text?"),
        (b"abc", {}, "{}: 3 tokens are trained on, too few for one context of 8 and the token after it"),
        (b"ab" * 30, {}, "{}: 6 tokens are held out, too few for one context of 8 and the token after it"),
        (b"", {"context": 0}, "context is 0, expected at least 1"),
        (b"", {"tokens": "words"}, "unknown tokens 'words'; there is bytes, bpe, uint16, uint32, npy"),
        (b"", {"tokens": "bpe", "vocabulary": 9}, "vocabulary is 9, expected at least 256, one for each byte"),
    ],
)
def test_refused(tmp_path, content, given, message):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_text(path, **{"context": 8, **given})
    assert str(error.value) == message.format(path)


IDS = np.random.default_rng(0).integers(0, 300, 500)


@pytest.mark.parametrize("tokens", ["uint16", "uint32", "npy"])
@pytest.mark.parametrize("is_small", [True, False])
def test_ids_that_were_made_elsewhere(tokens, is_small, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "IN_MEMORY", mapped.IN_MEMORY * is_small)
    monkeypatch.setattr(text, "AT_ONCE", 7)
    path = tmp_path / "ids"
    if tokens == "npy":
        np.save(path.with_suffix(".npy"), IDS)
        path = path.with_suffix(".npy")
    else:
        IDS.astype(tokens).tofile(path)
    read = read_text(path, 8, tokens, 300)
    assert isinstance(examples(read.train[0]), Rows) != is_small
    np.testing.assert_array_equal(examples(read.train[0])[:].ravel(), IDS[: 56 * 8])
    np.testing.assert_array_equal(examples(read.test[1])[:].ravel(), IDS[451 : 451 + 48])
    p = (np.bincount(IDS[:450], minlength=300) + 1) / 750
    assert (read.score, read.unigram) == ("bits a token", pytest.approx(-np.log2(p[IDS[450:]]).mean()))
    again = tokenizer_of(read.tokenizer.saved)
    np.testing.assert_array_equal(again.encode(read.prompt), IDS[:3])
    assert again.decode([1, 2]) == " 1 2"


def test_a_text_larger_than_memory_is_held_out_from_the_same_character(file, monkeypatch):
    whole = read_text(file, 8)
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    for at_once in (1, 7, 64, 10_000):
        monkeypatch.setattr(text, "AT_ONCE", at_once)
        read = read_text(file, 8)
        assert isinstance(examples(read.train[0]), Rows)
        jax.tree.map(np.testing.assert_array_equal, (read.train, read.test), (whole.train, whole.test))
        assert read.unigram == pytest.approx(whole.unigram)
    file.write_bytes(TEXT.encode() + b"\xc3")
    monkeypatch.setattr(text, "AT_ONCE", 5)
    with pytest.raises(ValueError) as error:
        read_text(file, 8)
    assert str(error.value) == f"{file}: byte {len(TEXT.encode())} is no UTF-8; is it a text?"


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (b"\1\0\2", {}, "{}: 3 bytes are no whole number of uint16"),
        (b"\1\0" * 20 + b"\3\0" * 20, {}, "{}: token 21 is 3, expected 0 ... 2 (--vocabulary)"),
        (b"\1\0" * 79 + b"\5\0", {}, "{}: token 80 is 5, expected 0 ... 2 (--vocabulary)"),
        (b"\1\0" * 3, {"vocabulary": 0}, "vocabulary is 0, expected at least 1"),
        (b"", {}, "{}: shape (0,): the data is empty"),
        (b"\1\0\2\0", {"tokens": "npy"}, "{}: not an array of numbers as numpy.save writes it ("),
    ],
)
def test_no_ids(tmp_path, content, given, message):
    path = tmp_path / "t.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_text(path, 1, **{"tokens": "uint16", "vocabulary": 3, **given})
    assert str(error.value).startswith(message.format(path))
    with pytest.raises(ValueError, match="tokens uint16 are those of a file of ids; name it"):
        read_text(None, 8, "uint16")


def test_what_is_no_id_is_no_prompt():
    with pytest.raises(ValueError, match=r"^'The' is no id, expected 0 \.\.\. 299, parted by spaces$"):
        text.of_ids(300).encode("12 The")


@pytest.fixture
def of_a_table(tmp_path):
    """A run of a table, as it is written: the arrays, and the settings as metadata."""
    network = bpref.serial(bpref.linear(3), bpref.relu(), bpref.linear(1))
    params = network.init(jax.random.key(0), np.zeros((1, 2), np.float32))
    arrays = {f"{i}.{name}": np.asarray(v) for i in (0, 2) for name, v in params[i]._asdict().items()}
    settings = {"layers": [3], "activation": "relu", "units": {"features": ["a", "b"], "classes": []}}
    return SimpleNamespace(path=tmp_path, network=network, params=params, arrays=arrays, settings=settings)


def save(run, arrays=None, **changed):
    metadata = {"settings": json.dumps(run.settings | changed)}
    save_file(run.arrays | (arrays or {}), run.path / "params.safetensors", metadata=metadata)


def test_a_runs_network_and_params_are_loaded_again(of_a_table):
    save(of_a_table)
    for path in (of_a_table.path, str(of_a_table.path / "params.safetensors")):
        loaded = load(path)
        x = np.ones((4, 2), np.float32)
        y = loaded.network.forward(loaded.params, x)[0]
        np.testing.assert_array_equal(y, of_a_table.network.forward(of_a_table.params, x)[0])
        assert loaded.tokenizer is None
        assert loaded.settings == of_a_table.settings


def test_arrays_that_do_not_fit_are_each_named(of_a_table):
    del of_a_table.arrays["0.b"]
    save(of_a_table, {"2.W": np.zeros((1, 4), np.float32), "more": np.zeros(1)})
    with pytest.raises(ValueError) as error:
        load(of_a_table.path)
    file = of_a_table.path / "params.safetensors"
    assert str(error.value) == f"{file}: no 0.b; unknown more; 2.W has shape (1, 4), expected (1, 3)"


def test_a_file_that_is_no_run_is_said_to_be_none(of_a_table):
    file = of_a_table.path / "params.safetensors"
    with pytest.raises(FileNotFoundError) as missing:
        load(of_a_table.path)
    assert str(missing.value).startswith(f"{of_a_table.path}: there is no params.safetensors, as ")
    save_file(of_a_table.arrays, file)
    with pytest.raises(ValueError) as error:
        load(file)
    assert str(error.value) == f"{file}: it has no settings, so it is not of `bpref train`"
    file.write_bytes(b"nonsense" * 9)
    with pytest.raises(ValueError) as error:
        load(file)
    assert str(error.value).startswith(f"{file}: it is no whole safetensors file (")
    save(of_a_table, activation="rely")
    with pytest.raises(ValueError) as error:
        load(file)
    assert str(error.value).startswith(f"{file}: its settings make no network: ")
    assert set(load_file(file)) == set(of_a_table.arrays)

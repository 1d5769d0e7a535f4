"""`bpref train gpt`, `bpref sample` and `bpref.load`, in process: from a text to a generated one."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.cli.app import run
from bpref.models.text import TEXT_MODELS, text_model
from bpref.train.data import mapped
from bpref.train.data.text import bits_per_byte

pytestmark = pytest.mark.usefixtures("standard_promotion")

TEXT = "the cat sat on the mat, and the dog sat on the log. " * 40

SMALL = ["--context", "16", "--width", "16", "--depth", "1", "--epochs", "8", "--learning-rate", "0.02"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_from_a_text_to_a_generated_one(model, file, out, capsys):
    """What is loaded again predicts the text that was held out as the run said, and goes on from a prompt."""
    assert run(["train", model, "--text", str(file), *SMALL, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{file}: 116 contexts of 16 bytes to train on, 12 held out, its end"
    assert re.fullmatch(rf"{model} of 1 block, width 16, [\d,]+ parameters; adamw, learning rate 0.02 .*", lines[1])
    assert float(re.search(r"largest error against the oracle (\S+)", lines[2])[1]) < 1e-10
    score, alone = map(float, re.match(r"test (\S+) bits a byte after 56 steps .* alone: (\S+)\)", lines[3]).groups())
    assert score < 0.6 * alone
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["test_score"] == pytest.approx(score, abs=1e-3)

    loaded = bpref.load(out)
    ids = loaded.tokenizer.encode(TEXT[-int(0.1 * len(TEXT)) :])
    X, y = ids[:-1][: 12 * 16].reshape(12, 16), ids[1:][: 12 * 16].reshape(12, 16)
    forward = jax.jit(loaded.network.forward)
    p = jax.nn.log_softmax(forward(loaded.params, X)[0])
    assert bits_per_byte(-jnp.take_along_axis(p, y[..., None], -1).mean(), 1.0) == pytest.approx(score, abs=2e-3)

    assert run(["sample", str(out), "--prompt", "the cat", "--tokens", "30", "--temperature", "0"]) == 0
    text = capsys.readouterr().out.removesuffix("\n")
    prompt = loaded.tokenizer.encode("the cat")
    ids = np.zeros(len(prompt) + 30, np.int32)  # what comes after a place does not change its logits
    ids[: len(prompt)] = prompt
    for t in range(len(prompt), len(ids)):
        ids[t] = jnp.argmax(forward(loaded.params, ids[None])[0][0, t - 1])
    assert text == loaded.tokenizer.decode(ids)


def test_of_ids_made_elsewhere_larger_than_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    file, out = tmp_path / "ids.bin", tmp_path / "run"
    np.tile(np.arange(7, dtype=np.uint16), 400).tofile(file)
    options = ["--text", str(file), "--tokens", "uint16", "--vocabulary", "8", *SMALL, "--out", str(out)]
    assert run(["train", "lstm", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{file}: 157 contexts of 16 tokens to train on, 17 held out, its end"
    score, alone = map(float, re.match(r"test (\S+) bits a token after .* alone: (\S+)\)", lines[3]).groups())
    assert score < 0.5 < np.log2(7) < alone
    assert lines[-1] == f'go on with: bpref sample {out} --prompt "0 1 2"'
    assert run(["sample", str(out), "--prompt", "0 1 2", "--tokens", "6", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "0 1 2 3 4 5 6 0 1\n"
    assert run(["sample", str(out)]) == 2
    assert capsys.readouterr().err == "bpref: 'The' is no id, expected 0 ... 7, parted by spaces\n"


def test_what_a_model_of_text_is_trained_by_has_the_params_of_its_network():
    ids = jnp.zeros((2, 8), jnp.int32)
    for name in TEXT_MODELS:
        model = text_model(name, 50, 8, 16, 2, 2)
        of_network = jax.eval_shape(model.network.init, jax.random.key(0), ids)
        of_objective = jax.eval_shape(model.objective.init, jax.random.key(0), (ids, ids))
        assert jax.tree.map(jnp.shape, of_network) == jax.tree.map(jnp.shape, of_objective)


def test_pythons_own_documentation_is_learned(capsys):
    """The stated score: below 3.2 bits a byte after 204 steps, where frequencies alone need more than 4.5."""
    small = ["--width", "32", "--depth", "1", "--heads", "2", "--batch-size", "32", "--learning-rate", "0.01"]
    assert run(["train", "gpt", "--epochs", "1", *small]) == 0
    score, alone = re.search(
        r"test (\S+) bits a byte after \d+ steps .* alone: (\S+)\)", capsys.readouterr().out
    ).groups()
    assert float(score) < 3.2 < 4.5 < float(alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "gpt", "--layers", "3"], "--layers goes with a table; gpt is a model of text"),
        (["train", "gpt", "--target", "y"], "--target goes with a table; gpt is a model of text"),
        (["train", "digits", "--context", "3"], "--context goes with a model of text: gpt, mixture, lstm, mamba"),
        (["train", "gtp"], "unknown data set or model 'gtp'; the nearest is gpt"),
        (["train", "gpt", "--heads", "5"], "gpt: width is 64, expected a multiple of heads, 5"),
        (["train", "mixture", "--experts", "0"], "mixture_of_experts: experts is 0, expected a positive integer"),
        (["train", "gpt", "--width", "0"], "gpt: width is 0, expected a positive integer"),
        (["train", "gpt", "--text", "/nowhere"], "/nowhere: No such file or directory"),
        (["train", "digits", "--experts", "3"], "--experts goes with a model of text"),
        (["train", "gpt", "--experts", "3"], "--experts is no setting of gpt"),
        (["train", "mamba", "--heads", "2"], "--heads is no setting of mamba"),
        (["train", "gpt", "--vocabulary", "300"], "--vocabulary goes with --tokens; of bytes there are 256"),
        (["sample", "/nowhere"], "there is no params.safetensors, as `bpref train --out /nowhere` leaves it"),
    ],
)
def test_refused(arguments, message, capsys):
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_bad_prompts_are_refused(file, tmp_path, out, capsys):
    assert run(["train", "lstm", "--text", str(file), *SMALL, "--epochs", "1", "--out", str(out)]) == 0
    capsys.readouterr()
    for options, message in (
        (["--prompt", ""], "the prompt is empty, expected a text to go on from"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--top-k", "0"], "top_k is 0, expected an integer from 1 to 256"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--tokens", "0"], "tokens is 0, expected at least 1"),
    ):
        assert run(["sample", str(out), *options]) == 2
        assert message in capsys.readouterr().err
    assert run(["train", "diabetes", "--epochs", "1", "--layers", "2", "--out", str(tmp_path / "table")]) == 0
    capsys.readouterr()
    assert run(["sample", str(tmp_path / "table")]) == 2
    assert "is of a table; bpref sample is for models of text" in capsys.readouterr().err

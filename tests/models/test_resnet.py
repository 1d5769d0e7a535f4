"""resnet: the published sizes, a plain form's gradient, and digits told apart."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from benchmarks import plain_models
from bpref.cli.app import run
from bpref.train.data.embedded import digits_as_images
from bpref.train.data.split import rows_of_split
from tests.rules.sweeping import by_oracle, compiled

PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
"""Parameters with 1,000 classes, of torchvision's models, which are these."""


@pytest.mark.parametrize("name", bpref.RESNETS)
def test_a_published_resnet_has_as_many_parameters(name):
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    network = bpref.resnet(name, 1000)
    params, state = jax.eval_shape(lambda key: bpref.begin(network, key, images), jax.random.key(0))
    assert sum(p.size for p in jax.tree.leaves(params)) == PUBLISHED[name]
    (logits, _), _ = jax.eval_shape(network.forward, params, bpref.With(images, state))
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize(("bottleneck", "small"), [(False, True), (True, False)])
def test_it_is_the_plain_form_and_its_gradient_autodiffs(bottleneck, small):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=(3, 10, 8, 2))
        network = bpref.resnet((2, 1), 5, 4, bottleneck, small)
        params, state = compiled(partial(bpref.begin, network))(jax.random.key(0), x)
        params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), params)
        dy = rng.normal(size=(3, 5))
        (y, _), dparams, dx = compiled(lambda *a: bpref.backpropagate(network, a[0], bpref.With(a[1], state), a[2]))(
            params, x, dy
        )
        plain = partial(plain_models.resnet, bottleneck=bottleneck, small=small)
        expected, truth = by_oracle(plain, params, x, dy=dy)
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
        came = jax.tree.leaves((dparams, dx.x))
        for ours, theirs in zip(came, jax.tree.leaves(truth), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("standard_promotion")
def test_digits_are_told_apart_and_the_network_is_loaded_again(tmp_path, capsys):
    out = tmp_path / "run"
    small = ["--depth", "1", "--width", "4", "--epochs", "2", "--batch-size", "16", "--learning-rate", "0.02"]
    assert run(["train", "resnet", *small, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1437 to train on, 360 held out by seed 0")
    assert float(re.search(r"largest error against the oracle (\S+)", lines[2])[1]) < 1e-10
    score = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["test_score"]
    assert score > 0.8

    X, y = digits_as_images()
    held_out = rows_of_split(len(X), 0)[1]
    loaded = bpref.load(out)
    network = bpref.evaluation(loaded.network)
    (logits, _), _ = network.forward(loaded.params, bpref.With(X[held_out], loaded.state))
    assert (np.argmax(logits, 1) == y[held_out]).mean() == pytest.approx(score)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet19", 10), "unknown resnet 'resnet19'; the nearest are "),
        (((), 10), "resnet: blocks is empty, expected how many blocks each stage has"),
        (((2, 0), 10), "resnet: blocks[1] is 0, expected a positive integer"),
        (((2,), 0), "resnet: classes is 0, expected a positive integer"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        bpref.resnet(*arguments)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("option", ["--layers", "--heads"])
def test_options_of_others_are_refused(option, capsys):
    assert run(["train", "resnet", option, "3"]) == 2
    assert option in capsys.readouterr().err

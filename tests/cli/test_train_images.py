"""`bpref train vae` and `unet`, and `bpref sample` of them: the stated scores, a picture, and what is refused."""

import gzip
import json
import re

import matplotlib.image
import numpy as np
import pytest

import bpref
from bpref.cli.app import run
from bpref.naming import flat_names
from bpref.train.data import mapped
from tests.train.test_mapped import idx

pytestmark = pytest.mark.usefixtures("standard_promotion")

STATED = {
    "vae": (["--epochs", "15"], "nats an image", 25.5, 27.0),
    "unet": (["--epochs", "2", "--width", "8", "--learning-rate", "0.01"], "squared error of the noise", 0.4, 0.99),
}
"""What a few steps reach, where no network, each pixel for itself or no guess at all, has more."""


@pytest.mark.parametrize(("model", "of"), STATED.items(), ids=STATED)
def test_from_digits_to_new_ones(model, of, tmp_path, capsys):
    small, name, reached, without = of
    out, picture = tmp_path / "run", tmp_path / "made.png"
    assert run(["train", model, *small, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert float(re.search(r"largest error against the oracle (\S+)", lines[2])[1]) < 1e-10
    score, untrained = map(float, re.match(rf"test {name} (\S+) \(.*: (\S+)\), test loss", lines[3]).groups())
    assert score < reached < without < untrained
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["test_score"] == pytest.approx(
        score, abs=1e-4
    )
    assert lines[-1] == f"make images with: bpref sample {out} --output images.png"

    assert run(["sample", str(out), "--images", "3", "--output", str(picture), "--seed", "1"]) == 0
    assert capsys.readouterr().out == f"written: {picture}, 3 images of 8 x 8 pixels\n"
    pixels = matplotlib.image.imread(picture)[..., 0]
    assert pixels.shape == (80, 80)
    assert pixels[:40].std() > 0.1
    assert (pixels[40:, 40:] == 0).all(), "there is no fourth"
    loaded = bpref.load(out)
    assert not any("key" in name for name in flat_names(loaded.params))
    again = tmp_path / "again.png"
    assert run(["sample", str(out), "--images", "3", "--output", str(again), "--seed", "2"]) == 0
    assert (matplotlib.image.imread(again) != matplotlib.image.imread(picture)).any()
    capsys.readouterr()
    for options, message in (
        (["--prompt", "a"], f"--prompt goes with a model of text; this is {model}, which makes images"),
        (["--images", "0"], "images is 0, expected at least 1"),
        (["--output", "a.jpg"], "--output a.jpg: expected a file that ends in .png"),
        (["--output", "/nowhere/a.png"], "--output /nowhere/a.png: No such file or directory"),
    ):
        assert run(["sample", str(out), *options]) == 2
        assert capsys.readouterr().err == f"bpref: {message}\n"


def test_in_half_precision_and_in_the_backward(capsys):
    """vae, whose prediction is a tree."""
    small = ["--epochs", "2", "--latent", "2", "--width", "16", "--dtype", "bfloat16", "--update-in-backward"]
    assert run(["train", "vae", *small]) == 0
    score = float(re.search(r"test nats an image (\S+)", capsys.readouterr().out)[1])
    assert np.isfinite(score)
    assert score < 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unet", "--latent", "3"], "--latent is no setting of unet"),
        (["resnet", "--noise-steps", "3"], "--noise-steps is no setting of resnet"),
        (["vae", "--latent", "0"], "variational_autoencoder: latent is 0, expected a positive integer"),
        (["unet", "--depth", "4"], "diffusion: the images' height is 8, expected a multiple of 16, for depth 4"),
        (["unet", "--text", "t.txt"], "--text goes with a model of text: gpt, mixture, lstm, mamba"),
        (["gpt", "--latent", "3"], "--latent goes with a model of images that makes some; gpt is a model of text"),
        (["digits", "--latent", "3"], "--latent goes with a model: gpt, mixture, lstm, mamba, resnet, vit, vae, unet"),
    ],
)
def test_refused(arguments, message, capsys):
    assert run(["train", *arguments]) == 2
    assert capsys.readouterr().err == f"bpref: {message}\n"


def test_what_tells_images_apart_makes_none(out, capsys):
    small = ["--depth", "1", "--width", "4", "--epochs", "1", "--batch-size", "512"]
    assert run(["train", "vit", *small, "--out", str(out)]) == 0
    capsys.readouterr()
    assert run(["sample", str(out)]) == 2
    assert "it is of vit, which tells images apart; bpref sample is for models of text" in capsys.readouterr().err
    assert run(["predict", str(out), "--data", "a.csv"]) == 2
    message = f"{out}: it is of vit, no table; bpref predict is for tables, bpref sample for models of text or images"
    assert capsys.readouterr().err == f"bpref: {message}\n"


@pytest.mark.usefixtures("verified")
def test_own_images_in_idx_files(tmp_path, monkeypatch, capsys):
    """Bright on the left or on the right, 9 x 12 pixels; larger than memory, and compressed."""
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    y = (np.arange(80) % 2).astype(np.uint8)
    X = np.zeros((80, 9, 12), np.uint8)
    X[y == 0, :, :6], X[y == 1, :, 6:] = 255, 200
    images, labels, out = tmp_path / "images-idx3", tmp_path / "labels-idx1.gz", tmp_path / "run"
    images.write_bytes(idx(X))
    labels.write_bytes(gzip.compress(idx(y)))
    small = ["--width", "8", "--depth", "1", "--batch-size", "8", "--epochs", "3", "--learning-rate", "0.01"]
    files = ["--images", str(images), "--labels", str(labels)]
    assert run(["train", "vit", *small, *files, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{images}: 80 images of 9 x 12 pixels, 2 classes; 64 to train on, 16 held out by seed 0"
    assert re.match(r"test accuracy 1.0000, ", lines[2])
    loaded = bpref.load(out)
    logits, _ = loaded.network.forward(loaded.params, X[..., None].astype(np.float32) / 255)
    assert (np.argmax(logits, -1) == y).all()


@pytest.mark.usefixtures("verified")
def test_own_images_to_make_more_of_and_what_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    np.save(tmp_path / "v.npy", np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8))
    images = ["--images", str(tmp_path / "v.npy")]
    small = ["--width", "8", "--latent", "2", "--epochs", "1", "--batch-size", "8"]
    assert run(["train", "vae", *small, *images, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'v.npy'}: 40 images of 4 x 4 pixels; 32 to train on")
    for arguments, message in (
        (["vit", *images], "--images goes with --labels for vit, which tells images apart"),
        (["vae", *images, "--labels", "x"], "--labels means nothing to vae, which makes images"),
        (["vit", "--labels", "x"], "--labels goes with --images, a file of your own"),
        (["gpt", *images], "--images goes with a model of images; gpt is a model of text"),
        (["digits", *images], "--images goes with a model of images: resnet, vit, vae, unet"),
        (["vae", "--images", "/nowhere"], "/nowhere: No such file or directory"),
    ):
        assert run(["train", *arguments]) == 2
        assert capsys.readouterr().err == f"bpref: {message}\n"

"""`bpref train --resume`: a run that is stopped or killed goes on to the same bits, and faults leave what it has."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from bpref.cli.app import run
from bpref.train.keeping import record
from bpref.train.keeping.record import Record, held
from tests.cli.test_ending import ENVIRONMENT

pytestmark = pytest.mark.usefixtures("standard_promotion", "verified")


@pytest.fixture
def options(csv_file):
    return ["--data", str(csv_file), "--target", "y", "--layers", "3", "--batch-size", "4"]


@pytest.fixture
def train(options, out, standard_promotion):
    """Trains a network of three units for four epochs of four steps, into the directory `run`."""

    def train(*more, epochs=4):
        return run(["train", *options, "--epochs", str(epochs), "--out", str(out), *more])

    return train


@pytest.fixture
def after_two_epochs(monkeypatch):
    """Within it something is done to the record when the metrics of the second epoch have been written."""
    add = Record.add

    @contextmanager
    def after_two_epochs(do):
        def and_do(self, epoch):
            add(self, epoch)
            if epoch.number == 2:
                do(self)

        with monkeypatch.context() as patched:
            patched.setattr(Record, "add", and_do)
            yield

    return after_two_epochs


@pytest.fixture
def stopped(after_two_epochs):
    """Within it this process is sent a signal then, so many times."""
    return lambda number, times=1: after_two_epochs(lambda _: [os.kill(os.getpid(), number) for _ in range(times)])


def left_by(out):
    """What must not differ: the parameters and the metrics, but for the time that was taken."""
    metrics = [json.loads(line) | {"seconds": 0} for line in (out / "metrics.jsonl").read_text().splitlines()]
    return (out / "params.safetensors").read_bytes(), metrics


MODELS = {
    "gpt": "--context 8 --width 8 --depth 1 --heads 2 --batch-size 8",
    "vae": "--width 8 --latent 2 --dtype float16 --clip 1 --accumulate 3 --average 0.9",
    "digits": "--layers 4 --update-in-backward --dtype bfloat16 --clip leaf:1",
    "diabetes": "--layers 4 --dtype bfloat16 --stochastic-rounding",
}


@pytest.mark.parametrize("model", MODELS)
def test_whatever_is_trained_and_stopped_goes_on_to_the_same_bits(model, stopped, out, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("the cat sat on the mat, and the dog sat on the log. " * 20)
    options = [*MODELS[model].split(), *(["--text", str(tmp_path / "t.txt")] if model == "gpt" else [])]
    command = ["train", model, *options, "--epochs", "3", "--out"]
    assert run([*command, str(tmp_path / "whole")]) == 0
    with stopped(signal.SIGTERM):
        assert run([*command, str(out)]) == 143
    error = capsys.readouterr().err
    assert error.startswith("bpref: terminated after 2 epochs; step ")
    assert error.endswith(f" is kept in {out}, and the same command with --resume goes on from there\n")
    assert run([*command, str(out), "--resume"]) == 0
    assert ", after 2 epochs\n" in capsys.readouterr().out
    assert left_by(out) == left_by(tmp_path / "whole")
    assert sorted(os.listdir(out)) == ["loss.png", "metrics.jsonl", "params.safetensors", "run.json"]


def test_killed_at_once_it_goes_on_to_the_same_bits(options, train, out):
    """kill -9, as soon as there is a second checkpoint; of a line of metrics a half may be there."""
    command = [sys.executable, "-m", "bpref", "train", *options, "--out", str(out), "--checkpoint-every", "3"]
    process = subprocess.Popen([*command, "--epochs", "300"], env=ENVIRONMENT)
    while len(list(out.glob("checkpoints/*.json"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": ')
    assert train("--resume", epochs=300) == 0
    killed = left_by(out)
    shutil.rmtree(out)
    assert train(epochs=300) == 0
    assert left_by(out) == killed


def test_it_begins_where_there_is_no_run_yet_and_ends_where_it_is_done(train, out, capsys):
    assert train("--resume") == 0
    before = left_by(out)
    assert train("--resume") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{out}: the run has come to its end; there is nothing to go on with"
    assert left_by(out) == before


def test_a_second_interrupt_ends_at_once_and_a_first_is_130(train, stopped, out, capsys):
    with stopped(signal.SIGINT):
        assert train() == 130
    assert capsys.readouterr().err.startswith("bpref: interrupted after 2 epochs; step 8 is kept in ")
    shutil.rmtree(out)
    with stopped(signal.SIGINT, times=2):
        assert train() == 130
    assert capsys.readouterr().err == "bpref: interrupted\n"


@pytest.fixture
def unfinished(train, stopped, capsys):
    """A run that was stopped after step 8, of 16."""
    with stopped(signal.SIGTERM):
        assert train() == 143
    capsys.readouterr()


@pytest.mark.usefixtures("unfinished")
def test_what_is_not_the_same_run_is_refused(train, csv_file, out, capsys):
    before = left_by_the_unfinished(out)
    for change, message in (
        (["--layers", "4"], "layers was [3], and is [4] now"),
        (["--optimizer", "sgd"], "optimizer was adamw, and is sgd now; learning_rate was 0.001, and is 0.01 now"),
        (["--dtype", "float64"], "dtype was float32, and is float64 now"),
        ([], "data was sha256 "),
    ):
        if not change:
            csv_file.write_text(csv_file.read_text().replace("0.5", "0.25", 1))
        assert train(*change, "--resume") == 2
        (line,) = capsys.readouterr().err.splitlines()
        start = f"bpref: {out} cannot be gone on with, since it was begun otherwise: "
        assert line.startswith(start + message)
        assert left_by_the_unfinished(out) == before


def left_by_the_unfinished(out):
    return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("unfinished")
def test_two_runs_in_one_directory(train, out, capsys):
    with held(out):
        assert train("--resume") == 2
    message = f"another run is writing into {out}; wait until it ends, or name another"
    assert capsys.readouterr().err == f"bpref: {message}\n"


@pytest.mark.usefixtures("unfinished")
def test_a_damaged_checkpoint_is_a_warning_and_without_another_it_begins_again(train, out, capsys):
    (out / "checkpoints" / "8" / "_METADATA").write_text("{}")
    assert train("--resume") == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("bpref: the checkpoint of step 8 in ")
    assert "going on" not in printed.out
    assert [line["epoch"] for line in left_by(out)[1]] == [1, 2, 3, 4]


@pytest.fixture
def no_file_larger_than():
    """From now on until the end of the test: a disk that is full, as a process sees it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = os.strerror(errno.EFBIG)


def not_written(path, error=errno.EFBIG):
    """What is said of a file of the run."""
    why = f"{os.strerror(error)}; the metrics so far are in {path.parent / 'metrics.jsonl'}"
    return f"bpref: {path} cannot be written: {why}"


def test_the_disk_is_full_for_a_line_of_metrics(train, no_file_larger_than, out, capsys):
    metrics = out / "metrics.jsonl"
    no_file_larger_than(650)
    assert train() == 2
    lines = metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    assert capsys.readouterr().err == f"{not_written(metrics)}\n"
    assert len(lines) in (1, 2, 3)


def test_the_disk_is_full_for_a_checkpoint(train, no_file_larger_than, out, capfd):
    no_file_larger_than(1200)
    assert train("--checkpoint-every", "1") == 2
    said = capfd.readouterr().err
    assert re.fullmatch(
        rf"bpref: the checkpoint of step \d+ cannot be written to {out}/checkpoints: {FULL}; the metrics so far are in "
        rf"{out}/metrics.jsonl\n",
        said,
    )


@pytest.mark.usefixtures("unfinished")
def test_the_disk_is_full_for_the_parameters_and_they_are_not_lost(train, no_file_larger_than, out, capsys):
    no_file_larger_than(9_000)
    assert train("--resume") == 2
    assert capsys.readouterr().err == f"{not_written(out / 'loss.png')}, and the last checkpoint is of step 8\n"
    no_file_larger_than(10_000_000)
    assert train("--resume") == 0
    assert len(left_by(out)[1]) == 4


def test_the_directory_vanishes(train, after_two_epochs, out, capsys):
    with after_two_epochs(lambda record: shutil.rmtree(record.directory)):
        assert train() == 2
    assert capsys.readouterr().err == f"{not_written(out / 'metrics.jsonl', errno.ENOENT)}\n"


@pytest.mark.usefixtures("unfinished")
def test_a_directory_that_has_become_read_only(train, monkeypatch, out, capsys):
    before = left_by_the_unfinished(out)

    @contextmanager
    def refused(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        yield

    with monkeypatch.context() as patched:
        patched.setattr(record, "whole_file", refused)
        assert train("--resume") == 2
    said = not_written(out / "metrics.jsonl", errno.EROFS)
    assert capsys.readouterr().err == f"{said}, and the last checkpoint is of step 8\n"
    assert left_by_the_unfinished(out) == before


@pytest.mark.usefixtures("unfinished")
def test_what_has_been_cut_off_is_named(train, csv_file, out, capsys):
    begun, data = out / "run.json", csv_file.read_text()
    csv_file.write_text(data[:-6])
    assert train("--resume") == 2
    assert capsys.readouterr().err.startswith(f"bpref: {csv_file}, line 21")
    csv_file.write_text("".join(data.splitlines(keepends=True)[:-2]))
    assert train("--resume") == 2
    assert "begun otherwise: data was sha256 " in capsys.readouterr().err
    csv_file.write_text(data)
    begun.write_text(begun.read_text()[:40])
    assert train("--resume") == 2
    assert capsys.readouterr().err == f"bpref: {begun} is damaged: it is no object of JSON\n"


def test_the_gradient_is_looked_at_on_the_way_and_steps_are_traced(train, out, capsys):
    assert train("--verify-every", "5", "--profile") == 0
    lines = capsys.readouterr().out.splitlines()
    looked = [re.fullmatch(r"gradient of the batch after step (\d+), 4 layers .* oracle (\S+) \(.*", x) for x in lines]
    assert [int(found[1]) for found in looked if found] == [5, 10, 15]
    assert all(float(found[2]) < 1e-12 for found in looked if found)
    assert f"traced: {out / 'profile'}" in lines
    assert list((out / "profile").rglob("perfetto_trace.json.gz"))


def test_what_was_watched_is_kept_over_a_stop_where_its_line_is_lost_too(train, stopped, out):
    assert train("--watch") == 0
    whole = left_by(out)
    assert set(whole[1][0]["watched"]) == {"0.0 linear", "0.1 relu", "0.2 linear", "1 square"}
    shutil.rmtree(out)
    with stopped(signal.SIGTERM):
        assert train("--watch") == 143
    (out / "metrics.jsonl").write_text("")
    assert train("--watch", "--resume") == 0
    assert left_by(out) == whole


def events_of(directory):
    """`{tag: {step: value}}` of all files there, the last that was written; a step is void where a session starts."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.HasField("session_log"):
                found = {tag: {s: v for s, v in of.items() if s < event.step} for tag, of in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_figures_are_written_for_tensorboard_too_also_where_a_run_goes_on(train, stopped, out, monkeypatch):
    pytest.importorskip("tensorboardX", reason='tensorboardX is not installed: pip install "bpref[tensorboard]"')
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1.7e9)  # both runs within one second
    with stopped(signal.SIGTERM):
        assert train("--tensorboard") == 143
    assert train("--tensorboard", "--resume") == 0
    rows, found = left_by(out)[1], events_of(out / "tensorboard")
    tags = {"loss/train", "loss/test", "score/test", "seconds", "gradient_norm/0", "gradient_norm/2"}
    assert {tag: sorted(of) for tag, of in found.items()} == {tag: [4, 8, 12, 16] for tag in tags}
    for name, tag in (("train_loss", "loss/train"), ("test_score", "score/test")):
        assert list(found[tag].values()) == pytest.approx([row[name] for row in rows])


def test_without_the_library_there_is_no_tensorboard(train, monkeypatch, out, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert train("--tensorboard") == 2
    why = 'which is not installed: pip install "bpref[tensorboard]"'
    assert capsys.readouterr().err == f"bpref: --tensorboard needs tensorboardX, {why}\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tensorboard"], "--tensorboard goes with --out, the directory of the run"),
        (["--stochastic-rounding"], "--stochastic-rounding goes with --dtype bfloat16, not float32"),
        (["--profile"], "--profile goes with --out, the directory of the run"),
        (["--report", "page.html"], "--report goes with --out, the directory of the run"),
        (["--open"], "--open shows the page of --report FILE, which is not given"),
        (["--report", "TMP", "--out", "NEW"], "--report TMP: it is a directory"),
        (["--verify-every", "0"], "--verify-every is 0, expected at least 1 step"),
        (["--resume"], "--resume goes with --out, the directory of the run"),
        (["--checkpoint-every", "5"], "--checkpoint-every goes with --out, the directory of the run"),
        (["--checkpoint-every", "0", "--out", "NEW"], "--checkpoint-every is 0, expected at least 1 step"),
        (["--most-skipped", "-1"], "--most-skipped is -1, expected at least 0 steps"),
        (["--resume", "--out", "TMP"], "the output directory TMP exists already; name one that does not"),
    ],
)
def test_refused(arguments, message, csv_file, tmp_path, capsys):
    placed = {"TMP": str(tmp_path), "NEW": str(tmp_path / "new")}
    assert run(["train", *(placed.get(a, a) for a in arguments)]) == 2
    assert capsys.readouterr().err == f"bpref: {message.replace('TMP', str(tmp_path))}\n"
    assert os.listdir(tmp_path) == [csv_file.name]

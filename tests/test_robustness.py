"""Whatever happens, nothing that was there is lost, and a mistake is told in one line."""

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SAMPLE, TINY, WORDS, assert_one_line, tiny

import lstm

COMMAND = [sys.executable, str(ROOT / "lstm.py")]


@pytest.fixture
def start(environment, tmp_path):
    """Start the script in an empty folder and return the running process."""

    def start(*arguments, variables=(), **options):
        return subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | dict(variables),
            cwd=tmp_path,
            **options,
        )

    return start


def test_stopped_in_training(start, tmp_path):
    kept = tmp_path / "lstm.keras"
    kept.write_bytes(b"the old one")
    process = start(*TINY, "--number-of-epochs", "100000")
    for line in process.stdout:
        if line.startswith("Epoch 2/"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (-signal.SIGINT, "")
    assert {"lstm.keras", "keras"} >= set(os.listdir(tmp_path))
    assert kept.read_bytes() == b"the old one"


def test_nobody_reads_on(start):
    process = start(*TINY, "--number-of-epochs", "100000")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == -signal.SIGPIPE


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_full_disk(environment, tmp_path):
    kept = tmp_path / "lstm.keras"
    kept.write_bytes(b"the old one")
    # No file may grow beyond 8 KiB: the same as no space on the disk.
    command = "ulimit -f 8; exec " + shlex.join([*COMMAND, *TINY])
    process = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert process.returncode == 1, process.stderr
    assert process.stderr.count("\n") == 1
    assert_one_line(process.stderr, "File too large")
    assert kept.read_bytes() == b"the old one"
    assert {"lstm.keras", "keras"} >= set(os.listdir(tmp_path))


DIVERGING = {"optimizer": "sgd", "learning_rate": 1e38, "number_of_epochs": 9}


@pytest.mark.parametrize("there", [True, False])
def test_loss_that_is_not_finite_keeps_nothing(there, tmp_path, capsys):
    kept = tmp_path / "lstm.keras"
    if there:
        kept.write_bytes(b"the old one")
    lstm.main(tiny(**DIVERGING, model_path=str(kept)))
    output = capsys.readouterr().out
    assert "not finite" in output.splitlines()[-1] and "Model kept" not in output
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [
        b"the old one"
    ] * there


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -float("inf"), 0, -0.1])
def test_learning_rate_that_cannot_work_is_refused(rate):
    with pytest.raises(lstm.UserError, match=r"\Alearning_rate: .*\Z"):
        tiny(learning_rate=rate)


def test_patience_needs_held_out_reviews():
    with pytest.raises(lstm.UserError, match=r"\Apatience: .*validation_split.*\Z"):
        tiny(patience=1, validation_split=0.0)
    with pytest.raises(lstm.UserError, match=r"\Apatience: .*\Z"):
        tiny("tuned", patience=1)


@pytest.mark.parametrize("patience", [1, 9])
def test_patience_keeps_the_best_epoch(patience, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "noise.csv"
    rows = [f"{' '.join(rng.choice(WORDS, 9))},{n % 2}" for n in range(150)]
    path.write_text("\n".join(["text,label", *rows]))
    fields = {"data": str(path), "learning_rate": 0.05, "number_of_epochs": 8}
    kept = str(tmp_path / "lstm.keras")
    config = tiny(**fields, patience=patience, model_path=kept)
    _, history, _ = lstm.main(config)
    losses = history.history["val_loss"]
    best = np.argmin(losses)
    assert len(losses) == (best + 2 if patience == 1 else 8) and best < len(losses) - 1

    (x, y), _, vocabulary = lstm.load_data(config)
    x, y = lstm.prepare(x, vocabulary, config)[96:], y[96:, None]
    words = tf.constant(np.array([*vocabulary], object)[x])
    probabilities = keras.saving.load_model(kept).predict(words, verbose=0)
    loss = float(keras.losses.BinaryCrossentropy()(y, probabilities))
    assert loss == pytest.approx(losses[best], rel=1e-4)


def test_interrupt_keeps_the_best_epoch(tmp_path, monkeypatch, capsys):
    class Interrupt(keras.callbacks.TerminateOnNaN):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                weights.extend(self.model.get_weights())
            if epoch == 1:
                logs["val_loss"] = 99.0  # worse than the first
            if epoch == 2:
                raise KeyboardInterrupt

    weights = []
    monkeypatch.setattr(lstm, "INTERRUPTED", KeyboardInterrupt)
    monkeypatch.setattr(keras.callbacks, "TerminateOnNaN", Interrupt)
    fields = {"number_of_epochs": 9, "patience": 5, "learning_rate": 0.1}
    model, *_ = lstm.main(tiny(**fields, model_path=str(tmp_path / "lstm.keras")))
    assert "Interrupted" in capsys.readouterr().out
    for kept, first in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(kept, first)


def test_no_standard_output(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    model, *_ = lstm.main(tiny(model_path=str(tmp_path / "lstm.keras")))
    assert lstm.predict("word1", model).shape == (1,)


def test_interrupt_that_is_not_asked_for_is_raised(tmp_path, monkeypatch):
    class Output(io.StringIO):
        def write(self, text):
            if "val_loss: " in text:
                raise KeyboardInterrupt
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Output())
    config = tiny(verbosity_mode=2, model_path=str(tmp_path / "lstm.keras"))
    with pytest.raises(KeyboardInterrupt):
        lstm.main(config)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"plot": "c.png"}, "plot"),
        ({"data": "x.keras", "model_path": "x.keras"}, "model_path"),
        ({"model_path": "no/folder/lstm.keras"}, "model_path"),
        ({"model_path": "r.csv/lstm.keras"}, "model_path"),
    ],
    ids=str,
)
def test_place_is_refused_before_loading(fields, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lstm, "load_data", None)
    for file in ("r.csv", "x.keras"):
        (tmp_path / file).write_text("text,label\n")
    before = sorted(os.listdir())
    with pytest.raises(lstm.UserError, match=rf"\A{name}: .*\Z"):
        lstm.main(lstm.Config(**fields))
    assert sorted(os.listdir()) == before
    for file in ("r.csv", "x.keras"):
        assert (tmp_path / file).read_text() == "text,label\n"


LIKE_RUN = """
import runpy, sys

sys.argv = [sys.argv[1], "--batch-size", "0"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stopped:
    print("still here", stopped.code)
"""


def test_mistake_does_not_end_the_interpreter(python):
    process = python("-c", LIKE_RUN, str(ROOT / "lstm.py"))
    assert process.stdout == "still here 2\n"
    assert_one_line(process.stderr, "batch_size")


def test_predict_without_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(lstm.UserError, match=r"\Amodel_path: lstm.keras: .*train.*\Z"):
        lstm.classify(["text"], lstm.Config())
    bad = tmp_path / "bad.keras"
    for content in (b"not a model", b""):
        bad.write_bytes(content)
        with pytest.raises(
            lstm.UserError, match=r"\Amodel_path: .*bad.keras: cannot.*\Z"
        ):
            lstm.load(str(bad))


def test_train_on_ones_own_and_predict(run, start, tmp_path):
    shutil.copy(SAMPLE, tmp_path / "r.csv")
    name = "my brother's.keras"
    fields = ["--number-of-epochs", "12", "--batch-size", "16"]
    process = run("--data", "r.csv", *TINY, *fields, "--model-path", name)
    assert {*os.listdir(tmp_path)} - {"keras"} == {"r.csv", name}
    with open(SAMPLE, "rb") as file:
        assert (tmp_path / "r.csv").read_bytes() == file.read()

    # The command that the last line hints at
    kept, _, hint = process.stdout.splitlines()[-1].partition(" - try: ")
    assert kept == f"Model kept in {name}"
    interpreter, script, *flags, example = shlex.split(hint)
    assert (interpreter, script, example) == ("python", "lstm.py", "A wonderful film")
    texts = ["I loved every minute", "I fell asleep twice", "", "\x1b[31m 😀", "x" * 99]
    texts.append(example)
    process = run(*flags, *texts)
    lines = process.stdout.splitlines()
    assert process.stderr == "" and len(lines) == len(texts)
    assert lines[0].startswith("I loved every minute - positive - 0.")
    assert lines[1].startswith("I fell asleep twice - negative - 0.")
    assert "\x1b" not in lines[3] and "😀" in lines[3]
    assert len(lines[4].removesuffix(" - no known word")) < 80
    assert lines[5].startswith("A wonderful film - ")

    # From a pipe, each answer comes before the next line is asked. What the output
    # cannot show is a question mark.
    narrow = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    process = start(*flags, "-", variables=narrow, stdin=subprocess.PIPE)
    for text, line in zip(texts[:3], lines):
        process.stdin.write(text + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == line + "\n"
    process.stdin.buffer.write("good 😀 film é\n".encode())
    process.stdin.flush()
    assert process.stdout.readline().startswith("good ? film ? - ")
    process.stdin.buffer.write(b"nul \0 and no UTF-8 \xff\n")
    process.stdin.buffer.write(b"big " * 250_000)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors, output.count("\n")) == (0, "", 2)

"""Whatever happens, nothing that was there is lost, and a mistake is told in one line."""

import csv
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import ROOT, SAMPLE, TINY, WORDS, assert_one_line, random_model, tiny

import lstm

SCRIPT = str(ROOT / "lstm.py")
LONG = [*TINY, "--number-of-epochs", "100000"]
INTERRUPTED = "Interrupted: going on with what was learnt so far"


@pytest.fixture
def start(environment, tmp_path):
    """Start the script in an empty folder and return the running process."""
    processes = []

    def start(*arguments, command=(sys.executable, SCRIPT), variables=(), stdin=None):
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | dict(variables),
            cwd=tmp_path,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Run the script within this process, as a debugger does, in an empty folder.
    Returns its exit code, what it printed, and its errors."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
        monkeypatch.setattr(os, "_exit", sys.exit)  # this process is to go on
        code = 0
        try:
            runpy.run_path(SCRIPT, run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def old_model(tmp_path):
    """A file where the model is to be kept."""
    path = tmp_path / "lstm.keras"
    path.write_bytes(b"the old one")
    return path


def files_in(folder):
    return {name for name in os.listdir(folder) if name != "keras"}  # KERAS_HOME


def assert_untouched(old_model):
    assert old_model.read_bytes() == b"the old one"
    assert files_in(old_model.parent) == {old_model.name}


def interrupt(process, beginning):
    """Wait for a line, press Ctrl-C, and return the exit code, and what comes then."""
    for line in process.stdout:
        if line.startswith(beginning):
            break
    # TensorFlow loses a Ctrl-C in the millisecond in which it makes an iterator.
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=200)
    return process.returncode, output.splitlines(), errors


def test_interrupt_ends_the_training_but_not_the_run(start, old_model):
    code, lines, errors = interrupt(start(*LONG), "Epoch 2/")
    assert (code, errors) == (0, "")
    _, result, times, kept = lines[lines.index(INTERRUPTED) :]
    assert result.startswith("Test results - ") and times.startswith("Time - ")
    assert kept.startswith("Model kept in lstm.keras - try: ")
    assert lstm.predict("word1", lstm.load(str(old_model))).shape == (1,)
    assert files_in(old_model.parent) == {"lstm.keras"}


def test_interrupt_before_an_epoch_is_done_ends_the_run(start, old_model):
    code, lines, errors = interrupt(start(*LONG, "--preset", "tuned"), "Epoch 1/")
    assert (code, lines, errors) == (130, [], "")
    assert_untouched(old_model)


class Keyboard:
    """Standard output where Ctrl-C is pressed once a line is written that begins so,
    for one beginning after the other."""

    def __init__(self, monkeypatch, *beginnings):
        self.write_on, self.beginnings = sys.stdout.write, [*beginnings]
        monkeypatch.setattr(sys.stdout, "write", self.write)

    def write(self, text):
        self.write_on(text)
        if self.beginnings and text.strip().startswith(self.beginnings[0]):
            del self.beginnings[0]
            raise KeyboardInterrupt
        return len(text)


def test_second_interrupt_ends_the_run(script, monkeypatch, old_model):
    keyboard = Keyboard(monkeypatch, "Epoch 2/", "Interrupted")
    code, output, errors = script(*LONG)
    assert not keyboard.beginnings
    assert (code, errors) == (130, "")
    assert INTERRUPTED in output and "Model kept" not in output
    assert_untouched(old_model)


class InterruptAt(keras.callbacks.Callback):
    """Ctrl-C at the end of a step of some epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.at, self.now = epoch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.at:
            raise KeyboardInterrupt


def test_interrupt_of_main_from_python(tmp_path, capsys):
    config = tiny(number_of_epochs=9, model_path=str(tmp_path / "lstm.keras"))
    with pytest.raises(KeyboardInterrupt):
        lstm.main(config, [InterruptAt(epoch=0)])
    assert not files_in(tmp_path)
    model, history, results = lstm.main(config, [InterruptAt(epoch=2)])
    assert INTERRUPTED in capsys.readouterr().out.splitlines()
    assert history.epoch == [0, 1] and results["loss"] > 0
    assert lstm.predict("word1", model).shape == (1,)
    assert files_in(tmp_path) == {"lstm.keras"}


def test_interrupt_keeps_the_best_epoch(tmp_path, capsys):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                weights.extend(self.model.get_weights())
            if epoch == 1:
                logs["val_loss"] = 99.0  # worse than the first
            if epoch == 2:
                raise KeyboardInterrupt

    weights = []
    fields = {"number_of_epochs": 9, "patience": 5, "learning_rate": 0.1}
    config = tiny(**fields, model_path=str(tmp_path / "lstm.keras"))
    model, *_ = lstm.main(config, [Interrupt()])
    assert INTERRUPTED in capsys.readouterr().out
    for kept, first in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(kept, first)


def test_nobody_reads_on(start, old_model):
    process = start(*LONG)
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.stderr.read() == ""
    assert process.wait() == 1
    assert_untouched(old_model)


def test_full_disk(script, monkeypatch, old_model):
    resource = pytest.importorskip("resource")
    save = keras.Model.save
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_a_full_disk(self, path):
        # No file may grow beyond 8 KiB: the same as no space on the disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            save(self, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(keras.Model, "save", save_on_a_full_disk)
    code, output, errors = script(*TINY)
    assert code == 2
    assert_one_line(errors, "File too large")
    assert "Test results - " in output and "Model kept" not in output
    assert old_model.read_bytes() == b"the old one"


RESULTS = {"loss": 0.3, "accuracy": 0.9}


def test_interrupt_while_the_model_is_saved(monkeypatch, old_model):
    _, model, _ = random_model()

    def half_a_save(self, path):
        with open(path, "wb") as file:
            file.write(b"half a model")
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "save", half_a_save)
    with pytest.raises(KeyboardInterrupt):
        lstm.save(model, RESULTS, str(old_model))
    assert old_model.read_bytes() == b"the old one"


def test_model_that_cannot_be_replaced_is_kept_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, model, _ = random_model()
    os.mkdir("lstm.keras")  # as good as a virus scanner that holds the file
    with pytest.raises(OSError, match=r"lstm-\d+\.keras'") as refused:
        lstm.save(model, RESULTS, "lstm.keras")
    (name,) = files_in(tmp_path) - {"lstm.keras"}
    assert name in str(refused.value)
    assert lstm.predict("word1", lstm.load(name)).shape == (1,)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_keeps_nothing(loss, old_model):
    _, model, _ = random_model()
    with pytest.raises(lstm.UserError, match=r"\Aloss: not finite.*learning_rate\Z"):
        lstm.save(model, RESULTS | {"loss": loss}, str(old_model))
    assert_untouched(old_model)


def test_place_whose_name_holds_keras_twice(tmp_path, monkeypatch):
    _, model, _ = random_model()
    folder = tmp_path / "my.keras.models"
    folder.mkdir()
    lstm.save(model, RESULTS, str(folder / "a.keras.b.keras"))
    assert files_in(tmp_path) == {folder.name}
    assert files_in(folder) == {"a.keras.b.keras"}
    monkeypatch.setenv("IMDB_STAND_IN", "")
    *_, config = lstm.load_data(tiny(model_path=folder / "a.keras"))
    assert config.model_path == str(folder / "a-sample.keras")


@pytest.mark.parametrize(
    "path",
    [
        "folder.keras",
        "no/folder/lstm.keras",
        "own.csv/lstm.keras",
        "/proc/lstm.keras",
    ],
)
def test_place_is_refused_before_loading(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lstm, "load_data", lambda config: pytest.fail("loads"))
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "own.csv").write_text("text,label\n")
    with pytest.raises(lstm.UserError) as refused:
        lstm.main(tiny(model_path=path))
    shown = repr(path) if path == "folder.keras" else path  # refused by Config
    assert str(refused.value).startswith(f"model_path: {shown} ")
    assert files_in(tmp_path) == {"folder.keras", "own.csv"}
    assert (tmp_path / "own.csv").read_text() == "text,label\n"


def test_patience_keeps_the_best_epoch(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "noise.csv"
    rows = [f"{' '.join(rng.choice(WORDS, 9))},{n % 2}" for n in range(150)]
    path.write_text("\n".join(["text,label", *rows]))
    config = tiny(
        data=path,
        learning_rate=0.05,
        number_of_epochs=8,
        patience=1,
        model_path=tmp_path / "lstm.keras",
    )
    _, history, _ = lstm.main(config)
    losses = history.history["val_loss"]
    best = np.argmin(losses)
    assert len(losses) == best + 2 < 8  # it stopped after one that was worse

    (x, y), _, vocabulary, _ = lstm.load_data(config)
    words = ["", "[UNK]", "[START]", *vocabulary]
    texts = [" ".join(words[token] for token in review[1:]) for review in x[96:]]
    probabilities = lstm.predict(texts, lstm.load(config.model_path))
    loss = float(keras.losses.BinaryCrossentropy()(y[96:], probabilities))
    assert loss == pytest.approx(losses[best], rel=1e-4)


def test_no_standard_output(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    model, *_ = lstm.main(tiny(model_path=str(tmp_path / "lstm.keras")))
    assert lstm.predict("word1", model).shape == (1,)


def test_mistake_does_not_end_the_interpreter(script):
    code, output, errors = script("--batch-size", "0")
    assert (code, output) == (2, "")
    assert_one_line(errors, "batch_size")


def test_predict_without_a_model(script, tmp_path):
    code, output, errors = script("--predict", "text")
    assert (code, output) == (2, "")
    assert_one_line(errors, "model_path: lstm.keras: ")
    bad = tmp_path / "bad.keras"
    for content in (b"not a model", b""):
        bad.write_bytes(content)
        with pytest.raises(lstm.UserError, match=r"\Amodel_path: .*bad.keras: .+\Z"):
            lstm.load(str(bad))


def test_without_a_network_the_job_runs_on_the_sample(start, script, old_model):
    process = start(*TINY, variables={"IMDB_STAND_IN": ""})
    output, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, "")
    before, *lines, result, times, after, last = output.splitlines()
    folder = str(old_model.parent / "keras" / "datasets")
    for words in ("IMDB", "no network", folder, "made-up", "reviews.csv"):
        assert words in before
    with open(SAMPLE, encoding="utf-8", newline="") as file:
        reviews = len([*csv.DictReader(file)])
    assert sum(int(line[1:-2]) for line in lines[:2]) == reviews
    assert "Total params: " in output and " - val_loss: " in lines[-1]
    assert result.startswith("Test results - ") and times.startswith("Time - ")
    assert "made up" in after

    kept, _, hint = last.partition(" - try: ")
    assert kept == "Model kept in lstm-sample.keras"
    code, output, errors = script(*shlex.split(hint)[2:])
    assert (code, errors) == (0, "")
    assert re.fullmatch(r"A wonderful film - (pos|neg)\w+ - 0\.\d{4}.*\n", output)
    assert old_model.read_bytes() == b"the old one"
    assert files_in(old_model.parent) == {"lstm.keras", "lstm-sample.keras"}


GOOD, BAD = "I loved every minute", "I fell asleep twice"


def test_train_on_ones_own_and_predict(start, tmp_path):
    rng = np.random.default_rng(0)
    rows = [f'"{text} {rng.integers(99)}",{text == GOOD}' for text in [GOOD, BAD] * 60]
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]))
    # A copy of another name, in another folder, and settings for other projects
    (tmp_path / "a copy").mkdir()
    shutil.copy(SCRIPT, tmp_path / "a copy" / "my lstm.py")
    copy = [sys.executable, os.path.join("a copy", "my lstm.py")]
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text(
        '{"backend": "jax", "image_data_format": "channels_first", "epsilon": 1e-6}'
    )
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    variables = {"PATH": path, "KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1"}
    name = "my brother's.keras"
    arguments = [*TINY, "--preset", "tuned", "--number-of-epochs", "3"]
    arguments += ["--data", "own.csv", "--model-path", name]
    arguments += ["--plot", "none.png"]  # drawn with --predict alone
    heard = {"TF_CPP_MIN_LOG_LEVEL": "0"}  # to hear what TensorFlow says
    process = start(*arguments, command=copy, variables=variables | heard)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert errors.strip() and "Traceback" not in errors
    assert files_in(tmp_path) == {"own.csv", "a copy", name}

    # The same seed gives the same weights, bit by bit, on other cores.
    config = tiny(
        "tuned",
        batch_size=128,
        number_of_epochs=3,
        data=tmp_path / "own.csv",
        model_path=tmp_path / "again.keras",
    )
    again, alone = lstm.main(config)[0], lstm.load(str(tmp_path / name))
    for one, other in zip(again.get_weights(), alone.get_weights(), strict=True):
        assert one.tobytes() == other.tobytes()

    # The command that the last line hints at, for the lines of a pipe: each answer
    # comes before the next is asked. What the output cannot show is a question mark.
    kept, _, hint = output.splitlines()[-1].partition(" - try: ")
    assert kept == f"Model kept in {name}"
    *command, flag, example = shlex.split(hint)
    assert (flag, example) == ("--predict", "A wonderful film")
    variables |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    process = start(
        flag, "-", command=command, variables=variables, stdin=subprocess.PIPE
    )
    for text, beginning in (
        (example, "A wonderful film - "),
        (GOOD, f"{GOOD} - positive - 0."),
        (BAD, f"{BAD} - negative - 0."),
        ("", " - "),
        ("- begins with a dash", "- begins with a dash - "),
        ("two\tcells \x0b and more", "two cells and more - "),
        ("good 😀 film é", "good ? film ? - "),
    ):
        process.stdin.buffer.write(f"{text}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().startswith(beginning)
    process.stdin.buffer.write(b"no UTF-8 \xff\n" + b"big " * 250_000)
    output, errors = process.communicate(timeout=200)
    assert (process.returncode, output.count("\n"), errors) == (0, 2, "")

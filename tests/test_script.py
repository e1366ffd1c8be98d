"""The script as its user meets it: run as a process, on made-up reviews."""

import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SHORTER, TINY, assert_one_line, random_model, tiny

import lstm


def test_prints_the_articles_lines_and_nothing_else(run):
    process = run("--number-of-epochs", "2", "--max-sequence-length", "20")
    assert process.stderr == ""
    assert not set(process.stdout) & set("\b\r\t\x1b")
    lines = process.stdout.splitlines()
    assert lines[:2] == ["(300,)", "(100,)"]
    summary = " ".join(lines[2:-5])
    for text in ("(None, 20, 15)", "(None, 10)", "(None, 1)"):
        assert text in summary
    for count in ("75,000", "1,040", "11", "76,051"):
        assert re.search(rf"\D{count}\D", summary)
    assert "Total params: 76,051 " in summary  # none of the optimizer's
    curves = r"accuracy: \d\.\d{4} - loss: \d\.\d{4}"
    curves += r" - val_accuracy: \d\.\d{4} - val_loss: \d\.\d{4}"
    number = r"\d+\.\d"
    for line, pattern in zip(
        lines[-7:],
        [
            "Epoch 1/2",
            rf"\d+/\d+ - \d+s - \d+m?s/step - {curves}",
            "Epoch 2/2",
            rf"\d+/\d+ - \d+s - \d+m?s/step - {curves}",
            rf"Test results - Loss: {number}\d\d\d - Accuracy: {number}\d%",
            rf"Time - load: {number}s - fit: {number}s - evaluate: {number}s - on CPU",
            r"Model kept in lstm\.keras - try: "
            + re.escape(shlex.join([Path(sys.executable).name, str(ROOT / "lstm.py")]))
            + re.escape(' --predict "A wonderful film"'),
        ],
        strict=True,
    ):
        assert re.fullmatch(pattern, line), line


def test_help_and_wrong_flags_answer_before_tensorflow_is_imported(run, python):
    start = time.perf_counter()
    text = run("--help").stdout
    wrong = run("--number-of-epoch", "1", expect=2)
    assert python("-OO", str(ROOT / "lstm.py"), "--help").stdout == text
    assert time.perf_counter() - start < 3  # importing TensorFlow alone takes longer
    assert wrong.stdout == ""
    assert_one_line(wrong.stderr, "--number-of-epoch")
    for field in lstm.Config.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in text
    assert "--preset" in text and "--predict" in text
    source = (ROOT / "lstm.py").read_text(encoding="utf-8")
    comment = re.search("batch_size: int = 128  # (.+)", source)[1]
    assert f"{comment} (128)" in " ".join(text.split())


def test_flags_are_the_fields():
    arguments = "--batch-size 7 --lstm_units=3 --masked --no-rarest --dropout 0.5"
    arguments += " --lstm-options use_bias=False recurrent_dropout=0.2 activation=relu"
    arguments += " --additional-metrics auc accuracy --learning-rate 1.0"
    config, texts = lstm.parse_command_line(arguments.split())
    assert texts is None
    assert list(config.additional_metrics) == ["auc", "accuracy"]
    assert replace(config, additional_metrics=()) == lstm.Config(
        batch_size=7,
        lstm_units=3,
        masked=True,
        dropout=0.5,
        learning_rate=1.0,
        lstm_options={
            "use_bias": False,
            "recurrent_dropout": 0.2,
            "activation": "relu",
        },
        additional_metrics=(),
    )
    assert lstm.parse_command_line(["--predict", "a", "b"])[1] == ["a", "b"]


def test_presets_lose_against_what_is_given():
    for name, values in lstm.PRESETS.items():
        for flag in ("--lstm-units", "--lstm_units"):
            config, _ = lstm.parse_command_line(["--preset", name, flag, "3"])
            assert config == lstm.Config(**values | {"lstm_units": 3})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--batch-size 0", "batch_size"),
        ("--batch_size=x", "batch_size"),
        ("--num-distinct-words 0.5", "num_distinct_words"),
        ("--validation-split 1", "validation_split"),
        ("--validation-split nan", "validation_split"),
        ("--dropout -0.1", "dropout"),
        ("--word-dropout 1", "word_dropout"),
        ("--learning-rate nan", "learning_rate"),
        ("--learning-rate=-0.1", "learning_rate"),
        ("--patience=-1", "patience"),
        ("--lstm-options use_bias", "--lstm-options"),  # without a value
        ("--num-distinct-words 0", "num_distinct_words"),
        ("--num-bigrams=-1", "num_bigrams"),
        ("--preset best", "preset"),
        ("--pooling mean", "pooling"),
        ("--model-path lstm.h5", "model_path"),
        ("stray", "stray"),
    ],
)
def test_wrong_flag_is_one_line(arguments, word, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lstm.py"])
    with pytest.raises(SystemExit) as stopped:
        lstm.parse_command_line(arguments.split())
    assert stopped.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert_one_line(errors, "lstm.py: error: ", word)


@pytest.mark.parametrize(
    "given",
    [
        {"loss_function": "entropy"},
        {"loss_function": "ctc"},
        {"loss_function": "sparse_categorical_crossentropy"},
        {"loss_function": "categorical_crossentropy"},  # 0 for every answer
        {"loss_function": None},
        {"additional_metrics": ("acuracy",)},
        {"additional_metrics": ("accuracy", "top_k_categorical_accuracy")},
        {"optimizer": "adamm"},
        {"optimizer": "LossScaleOptimizer"},
        {"optimizer": None},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:In loss categorical")
def test_what_keras_refuses_names_the_field_before_loading(given, monkeypatch):
    (name,) = given
    monkeypatch.setattr(lstm, "load_data", lambda config: pytest.fail("loads"))
    with pytest.raises(lstm.UserError, match=rf"\A[^:]*{name}[^:]*: [^\x1b\n]*\Z"):
        lstm.main(lstm.Config(**given))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_regularizer": "l7"},
        {"dropout": "much"},
        {"drop": 0.2},
        {"activation": "tanhh"},
        {"return_sequences": True},
        {"return_state": True},
        {"activation": lambda x: x},  # it could not be kept
    ],
    ids="-".join,
)
@pytest.mark.filterwarnings("ignore:.*lambda")
def test_layers_that_cannot_be_used_are_refused_before_loading(options, monkeypatch):
    monkeypatch.setattr(lstm, "load_data", lambda config: pytest.fail("loads"))
    with pytest.raises((ValueError, TypeError, lstm.UserError)):
        lstm.main(lstm.Config(lstm_options=options))


def test_metrics_are_named_in_the_result(tmp_path, capsys):
    names = ["acc", "auc", "binary_accuracy", "hinge"]
    config = tiny(additional_metrics=names, model_path=tmp_path / "lstm.keras")
    _, history, results = lstm.main(config)
    assert {*results} == {"loss", *names} and {*results} <= {*history.history}
    (line,) = re.findall("^Test results - .*", capsys.readouterr().out, re.MULTILINE)
    assert "Auc: " in line and re.search(r"Binary_accuracy: \d+\.\d\d%", line)


def test_force_cpu_from_python(monkeypatch):
    class Built(Exception):
        pass

    def build_model(config):
        raise Built

    def hide(*what):
        hidden.append(what)
        return set_visible_devices(*what)

    def in_use(*_):
        raise RuntimeError("Visible devices cannot be modified")

    hidden, set_visible_devices = [], tf.config.set_visible_devices
    monkeypatch.setattr(lstm, "build_model", build_model)
    monkeypatch.setattr(tf.config, "set_visible_devices", hide)
    with pytest.raises(Built):  # a model takes the GPU into use
        lstm.main(tiny(force_cpu=True))
    assert hidden == [([], "GPU")]
    monkeypatch.setattr(tf.config, "set_visible_devices", in_use)
    with pytest.raises(lstm.UserError, match=r"\Aforce_cpu: .*in use"):
        lstm.main(tiny(force_cpu=True))


def python_in_the_readme():
    """Blocks that stand by themselves, and lines for `build_model` (indented)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    edits = [block for block in blocks if block.startswith(" ")]
    blocks = [block for block in blocks if block not in edits]
    edits = [edit for block in edits for edit in re.split(" *# or\n", block)]
    assert blocks and edits
    return blocks, edits


def test_python_in_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks, _ = python_in_the_readme()
    _, model, _ = random_model()
    model.save("lstm.keras")
    for block in blocks:
        (tmp_path / "block.py").write_text(block, encoding="utf-8")
        runpy.run_path("block.py")
        assert re.search(r"0\.\d+", capsys.readouterr().out)


def test_models_of_the_readme_are_trained(tmp_path, monkeypatch):
    source = (ROOT / "lstm.py").read_text(encoding="utf-8")
    added = re.compile(
        r"^    model\.add\(\n        layers\.LSTM\(\n.*?^    \)\n",
        re.MULTILINE | re.DOTALL,
    )
    registered = keras.saving.get_custom_objects()
    for name, value in list(registered.items()):
        monkeypatch.setitem(registered, name, value)  # to be set back
    texts, (_, edits) = ["word1 word2", "word30"], python_in_the_readme()
    for edit in edits:
        edited, count = added.subn(lambda _, edit=edit: edit, source)
        assert count == 1
        path = tmp_path / "edited_lstm.py"
        path.write_text(edited, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        config = tiny(model_path=tmp_path / "lstm.keras")
        model, *_ = module.main(config)
        kinds = [type(layer).__name__ for layer in model.layers]
        both = "Bidirectional" in edit
        assert kinds.count("LSTM") == (0 if both else edit.count("model.add"))
        assert kinds.count("Bidirectional") == both
        kept = module.predict(texts, module.load(config.model_path))
        np.testing.assert_allclose(kept, module.predict(texts, model), rtol=1e-5)


@pytest.fixture
def edited(tmp_path, monkeypatch, capsys):
    """Change texts of the script, start it so that it ends before TensorFlow is
    imported, and return its exit code, what it printed, and its errors."""

    def run(changes, *arguments):
        source = (ROOT / "lstm.py").read_text(encoding="utf-8")
        for old, new in changes.items():
            assert source.count(old) == 1
            source = source.replace(old, new)
        path = tmp_path / "edited.py"
        path.write_text(source, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(path), run_name="__main__")
        return stopped.value.code, *capsys.readouterr()

    return run


def test_defaults_that_were_changed_hold(edited):
    changes = {
        "patience: int = 0  # ": "patience: int = 3  # 100% of the ",
        "field(default_factory=dict)": "field(default_factory=lambda: {'unroll': 1})",
    }
    code, text, _ = edited(changes, "--help")
    assert code == 0
    text = " ".join(text.split())
    assert "100% of the stop after" in text and "0: never (3)" in text
    assert "({'unroll': 1})" in text


def test_flags_in_the_readme_exist(run):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("-r requirements.txt", "").replace("python -m pytest -n 2", "")
    flags = re.findall(r"[ `](--[a-z][a-z-]*)", text)
    known = run("--help").stdout
    assert flags
    for flag in flags:
        assert re.search(rf"{flag}[ ,]", known), flag


CONSOLES = """
import json, os, runpy, signal, sys

class Writer:  # all that a console promises
    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        self.stream.write(text)
        if text.startswith("Epoch 2/"):
            signal.raise_signal(signal.SIGINT)

    def flush(self):
        self.stream.flush()

path, shorter, *flags = sys.argv[1:]
sys.stdout, sys.ps1 = Writer(sys.stdout), ">>> "
with open(path, encoding="utf-8") as file:
    source = file.read()
for old, new in json.loads(shorter).items():
    assert old in source
    source = source.replace(old, new)

for argv in ([""], ["/x/pydevconsole.py", "--mode=client"]):  # Spyder, PyCharm
    print("== console")
    sys.argv = argv
    exec(source, globals())
    assert len(history.history["loss"]) == 1

print("== interrupted")
*_, results = main(Config(number_of_epochs=9, verbosity_mode=2))
plot_reading("word1 word2", model, "reading.png")
assert results["loss"] > 0

print("== another name")
for argv in ([""], [path, "--batch-size", "0"]):
    sys.argv = argv
    runpy.run_path(path, run_name="another")

print("== script")  # IDLE, a debugger
sys.argv = [path, *flags]
runpy.run_path(path, run_name="__main__")
for more in (["--optimizer", "adamm"], ["--optimizer", "sgd", "--learning-rate=1e38"]):
    print("== mistake")
    sys.argv = [path, *flags, *more]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stopped:
        print("code", stopped.code)
os.environ["IMDB_STAND_IN"] = ""  # no network and no copy
print("== alone")
sys.argv = [path, *flags]
runpy.run_path(path, run_name="__main__")
"""


def test_started_in_other_ways(python, tmp_path):
    path = str(shutil.copy(ROOT / "lstm.py", tmp_path))
    process = python("-c", CONSOLES, path, json.dumps(SHORTER), *TINY, expect=2)
    parts = re.split("^== ", process.stdout, flags=re.MULTILINE)
    _, spyder, pycharm, interrupted, other, script, wrong, infinite, alone = parts
    kept = "Model kept in lstm.keras - try: "
    for text in (spyder, pycharm, interrupted):
        assert kept + 'predict(["A wonderful film"], model)\n' in text
    assert "\nInterrupted" in interrupted and "Test results - " in interrupted
    assert "Epoch 2/9" in interrupted and "Epoch 3/9" not in interrupted
    assert (tmp_path / "reading.png").read_bytes().startswith(b"\x89PNG")
    assert other == "another name\n"
    assert kept + f"{Path(sys.executable).name} {path} --predict" in script
    assert wrong == "mistake\ncode 2\n"
    assert "Test results - " in infinite and "Model kept" not in infinite
    assert infinite.endswith("\ncode 2\n")
    assert alone == "alone\n"
    first, second, third = process.stderr.splitlines()
    assert_one_line(first, "optimizer", "adamm")
    assert_one_line(second, "not finite", "learning_rate")
    folder = str(tmp_path / "keras" / "datasets")
    assert_one_line(third, "IMDB", folder, "storage.googleapis.com", "no network")


PROBE = """
import os, runpy, sys

class Spy:
    def find_spec(self, name, path=None, target=None):
        if name in ("keras", "tensorflow"):
            sys.exit(print(name, os.environ.get("CUDA_VISIBLE_DEVICES")))

sys.meta_path.insert(0, Spy())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "before", "at_import"),
    [
        (["--force-cpu"], None, "-1"),
        (["--force-cpu"], "0", "-1"),
        ([], "0", "0"),
        ([], None, "None"),
    ],
)
def test_cpu_switch_is_set_when_tensorflow_is_imported(
    environment, arguments, before, at_import
):
    if before is not None:
        environment["CUDA_VISIBLE_DEVICES"] = before
    process = subprocess.run(
        [sys.executable, "-c", PROBE, "lstm.py", *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert process.stdout in (f"keras {at_import}\n", f"tensorflow {at_import}\n")

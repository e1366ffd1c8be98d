"""The script as its user meets it: run as a process, on made-up reviews."""

import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import tensorflow as tf
from conftest import ROOT, TINY, assert_one_line

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
        lines[-5:],
        [
            rf"Epoch 1/2 - {number}s - {curves}",
            rf"Epoch 2/2 - {number}s - {curves}",
            rf"Test results - Loss: {number}\d\d\d - Accuracy: {number}\d%",
            rf"Time - load: {number}s - fit: {number}s - evaluate: {number}s",
            "Model kept in lstm.keras - try: "
            + re.escape('python lstm.py --predict "A wonderful film"'),
        ],
        strict=True,
    ):
        assert re.fullmatch(pattern, line), line


def test_other_settings_of_keras_do_not_matter(run, tmp_path):
    home = tmp_path / "keras"
    home.mkdir()
    (home / "keras.json").write_text(
        '{"backend": "jax", "image_data_format": "channels_first", "epsilon": 1e-6}'
    )
    arguments = [*TINY, "--preset", "tuned", "--validation_split", "0.2"]
    process = run(*arguments, KERAS_BACKEND="torch", TF_USE_LEGACY_KERAS="1")
    assert process.stderr == ""
    assert "(None, 30)" in process.stdout and "val_loss" in process.stdout
    assert "Model kept" in process.stdout


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
    assert re.search(r"reviews per training step \(.*128\)", text)


def test_flags_are_the_fields():
    arguments = "--batch-size 7 --lstm_units=3 --masked --no-rarest --dropout 0.5"
    arguments += " --lstm-options use_bias=False units=4 activation=relu"
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
        lstm_options={"use_bias": False, "units": 4, "activation": "relu"},
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
        ("--batch_size=x", "batch-size"),
        ("--num-distinct-words 3", "num_distinct_words"),
        ("--validation-split 1", "validation_split"),
        ("--validation-split nan", "validation_split"),
        ("--dropout -0.1", "dropout"),
        ("--word-dropout 0.5", "word_dropout"),
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
        {"loss_function": "categorical_crossentropy"},
        {"loss_function": "sparse_categorical_crossentropy"},
        {"additional_metrics": ("acuracy",)},
        {"additional_metrics": ("accuracy", "top_k_categorical_accuracy")},
        {"lstm_options": {"kernel_regularizer": "l7"}},
        {"lstm_options": {"dropout": "much"}},
        {"lstm_options": {"drop": 0.2}},
        {"lstm_options": {"activation": "tanhh"}},
        {"lstm_options": {"return_state": True}},
        {"lstm_options": {"return_sequences": True}},
        {"optimizer": "adamm"},
        {"optimizer": "LossScaleOptimizer"},
    ],
    ids=str,
)
def test_what_keras_refuses_names_the_field_before_loading(given, monkeypatch):
    (name,) = given
    monkeypatch.setattr(lstm, "load_data", None)
    with pytest.raises(lstm.UserError, match=rf"\A{name}: [^\x1b\n]*\Z"):
        lstm.main(lstm.Config(**given))


def test_model_that_cannot_be_kept_is_refused_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr(lstm, "train", None)
    options = {"activation": lambda x: x}
    path = str(tmp_path / "lstm.keras")
    with pytest.raises(lstm.UserError, match=r"\Alstm_options: .*\Z"):
        lstm.main(lstm.Config(lstm_options=options, model_path=path))


@pytest.mark.parametrize("name", ["acc", "auc", "binary_accuracy", "hinge"])
def test_what_keras_takes_as_a_metric(name):
    config = lstm.Config(additional_metrics=(name,))
    model = lstm.build_model(config)
    lstm.compile_model(model, config)
    assert model.metrics_names == ["loss", "compile_metrics"]


def test_what_keras_refuses_is_one_line(run):
    process = run("--optimizer", "adamm", expect=2)
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert_one_line(process.stderr, "optimizer: ", "adamm")


def test_no_network_and_no_copy(run):
    process = run(IMDB_STAND_IN="", expect=2)
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert_one_line(process.stderr, "IMDB", "network", "storage.googleapis.com")


def test_hinted_command_works(run):
    lines = run(*TINY, "--model-path", "my brother's.keras").stdout.splitlines()
    kept, _, hint = lines[-1].partition(" - try: ")
    assert kept == "Model kept in my brother's.keras"
    interpreter, script, *arguments = shlex.split(hint)
    assert (interpreter, script) == ("python", "lstm.py")
    answer = run(*arguments)
    label = r"(positive|negative) - 0\.\d{4}"
    assert re.fullmatch(rf"A wonderful film - {label}\n", answer.stdout)
    assert answer.stderr == ""


SEEDED = """
import hashlib, os, sys

seed, cores = map(int, sys.argv[1:])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
import lstm

fields = {"num_distinct_words": 100, "max_sequence_length": 20, "batch_size": 32}
fields |= {"number_of_epochs": 2, "verbosity_mode": 0, "seed": seed}
model, *_ = lstm.main(lstm.Config(**lstm.PRESETS["tuned"] | fields))
weights = b"".join(weights.tobytes() for weights in model.get_weights())
for count in range(1, 6):
    assert lstm.predict(["word1 word2"] * count, model).shape == (count,)
print(hashlib.sha256(weights).hexdigest())
"""


def test_same_seed_same_weights_bit_by_bit(python):
    def weights(seed, cores):
        process = python("-c", SEEDED, str(seed), str(cores))
        assert process.stderr == ""  # no warning of Keras's about five predictions
        return process.stdout.splitlines()[-1]

    first = weights(1, 2)
    assert first == weights(1, 2) == weights(1, 1) != weights(2, 2)


def test_python_in_the_readme_runs_as_it_stands(run, python, environment, tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    run("--number-of-epochs", "1", "--num-distinct-words", "100")
    for block in blocks:
        process = python("-c", block)
        assert "Traceback" not in process.stderr


def test_flags_in_the_readme_exist(run):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("-r requirements.txt", "").replace("python -m pytest -n 2", "")
    flags = re.findall(r"[ `](--[a-z][a-z-]*)", text)
    known = run("--help").stdout
    assert flags
    for flag in flags:
        assert re.search(rf"{flag}[ ,]", known), flag


def test_cpu_switch_that_comes_too_late_is_told(monkeypatch):
    monkeypatch.setattr(lstm, "load_data", None)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    with pytest.raises(lstm.UserError, match=r"\Aforce_cpu: .*\Z"):
        lstm.main(lstm.Config(force_cpu=True))


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

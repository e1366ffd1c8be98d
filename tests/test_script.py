"""The script as its user meets it: run as a process, on made-up reviews."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
import time
from dataclasses import replace

import keras
import numpy as np
import pytest
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
        ("--word-dropout 1", "word_dropout"),
        ("--learning-rate nan", "learning_rate"),
        ("--learning-rate=-0.1", "learning_rate"),
        ("--patience=-1", "patience: -1 is below 0"),
        ("--num-bigrams=-1", "num_bigrams: -1 is below 0"),
        ("--patience 2 --validation-split 0", "patience"),
        ("--preset tuned --patience 2", "patience"),
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
    with pytest.raises(lstm.UserError, match=rf"\A[^:]*{name}[^:]*: [^\x1b\n]*\Z"):
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


SEEDED = """
import hashlib, os, sys

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
import lstm

fields = {"num_distinct_words": 100, "max_sequence_length": 20, "batch_size": 32}
fields |= {"number_of_epochs": 2, "verbosity_mode": 0}
for seed in (1, 2):
    model, *_ = lstm.main(lstm.Config(**lstm.PRESETS["tuned"] | fields, seed=seed))
    weights = b"".join(weights.tobytes() for weights in model.get_weights())
    print("weights", hashlib.sha256(weights).hexdigest())
for count in range(1, 6):
    assert lstm.predict(["word1 word2"] * count, model).shape == (count,)
"""


def test_same_seed_same_weights_bit_by_bit(python):
    def weights(cores):
        process = python("-c", SEEDED, str(cores))
        assert process.stderr == ""  # no warning of Keras's about five predictions
        return re.findall("^weights (.*)", process.stdout, re.MULTILINE)

    first, second = weights(2)
    assert [first, second] == weights(1) and first != second


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
    line = re.compile(r"^ +model\.add\(keras\.layers\.LSTM\(.*\)\)\n", re.MULTILINE)
    registered = keras.saving.get_custom_objects()
    for name, value in list(registered.items()):
        monkeypatch.setitem(registered, name, value)  # to be set back
    texts, (_, edits) = ["word1 word2", "word30"], python_in_the_readme()
    for edit in edits:
        edited, count = line.subn(lambda _, edit=edit: edit, source)
        assert count == 1
        path = tmp_path / "edited_lstm.py"
        path.write_text(edited, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        config = tiny("tuned", model_path=str(tmp_path / "lstm.keras"))
        model, *_ = module.main(config)
        kinds = [type(layer).__name__ for layer in model.layers]
        both = "Bidirectional" in edit
        assert kinds.count("LSTM") == (0 if both else edit.count("model.add"))
        assert kinds.count("Bidirectional") == both
        kept = module.predict(texts, module.load(config.model_path))
        np.testing.assert_allclose(kept, module.predict(texts, model), rtol=1e-5)


def test_defaults_that_were_changed_hold(python, tmp_path):
    source = (ROOT / "lstm.py").read_text(encoding="utf-8")
    for old, new in (
        ("patience: int = 0  # ", "patience: int = 3  # 100% of the "),
        ("field(default_factory=dict)", "field(default_factory=lambda: {'seed': 7})"),
    ):
        assert source.count(old) == 1
        source = source.replace(old, new)
    (tmp_path / "changed.py").write_text(source, encoding="utf-8")
    code = "import changed; read = changed.parse_command_line\n"
    code += "print(read(['--patience', '0'])[0].patience, read([])[0].lstm_options)\n"
    code += "read(['--help'])"
    process = python("-c", code)
    assert process.stdout.startswith("0 {'seed': 7}\n") and "100% of" in process.stdout


def test_flags_in_the_readme_exist(run):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("-r requirements.txt", "").replace("python -m pytest -n 2", "")
    flags = re.findall(r"[ `](--[a-z][a-z-]*)", text)
    known = run("--help").stdout
    assert flags
    for flag in flags:
        assert re.search(rf"{flag}[ ,]", known), flag


CONSOLES = """
import contextlib, gc, json, os, runpy, signal, sys

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
    assert len(history.history["loss"]) == 1 and gc.isenabled()

print("== interrupted")
*_, results = main(Config(number_of_epochs=9, verbosity_mode=2))
plot_reading("word1 word2", model, "reading.png")
assert results["loss"] > 0

print("== help")  # without the source
assert parse_command_line(["--batch-size", "7"])[0].batch_size == 7
with contextlib.suppress(SystemExit):
    parse_command_line(["--help"])

print("== another name")
for argv in ([""], [path, "--batch-size", "0"]):
    sys.argv = argv
    runpy.run_path(path, run_name="another")

print("== script")  # IDLE, a debugger
sys.argv = [path, *flags]
runpy.run_path(path, run_name="__main__")
assert gc.isenabled()
stand_in = os.environ["IMDB_STAND_IN"]
os.environ["IMDB_STAND_IN"] = ""  # no network and no copy
for argv in ([path], [path, "--optimizer", "adamm"]):
    sys.argv = argv
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stopped:
        print("== code", stopped.code)
    assert gc.isenabled()
os.environ["IMDB_STAND_IN"] = stand_in
sys.argv = [path, *flags, "--optimizer", "sgd", "--learning-rate", "1e38"]
print("== not finite")
runpy.run_path(path, run_name="__main__")
"""


def test_started_in_other_ways(python, tmp_path):
    arguments = [str(ROOT / "lstm.py"), json.dumps(SHORTER), *TINY]
    # Nothing is drawn on a screen, so Matplotlib needs no backend.
    nothing = "module://nothing.there"
    process = python("-c", CONSOLES, *arguments, expect=1, MPLBACKEND=nothing)
    parts = re.split("^== ", process.stdout, flags=re.MULTILINE)
    _, spyder, pycharm, interrupted, text, other, script, *codes, infinite = parts
    kept = "Model kept in lstm.keras{} - try: "
    assert kept.format("") in spyder and kept.format(" (replaced)") in pycharm
    assert "\nInterrupted" in interrupted
    assert "Epoch 2/9" in interrupted and "Epoch 3/9" not in interrupted
    assert "Test results - " in interrupted and "Model kept in " in interrupted
    assert (tmp_path / "reading.png").read_bytes().startswith(b"\x89PNG")
    assert "--num-distinct-words" in text and "reviews per training" not in text
    assert other == "another name\n"
    assert kept.format(" (replaced)") in script
    assert codes == ["code 2\n", "code 2\n"]
    assert "Test results - " in infinite and "Model kept" not in infinite
    first, second, third = process.stderr.splitlines()
    assert_one_line(first, "IMDB", "network", "storage.googleapis.com")
    assert_one_line(second, "optimizer", "adamm")
    assert_one_line(third, "not finite", "learning_rate")


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

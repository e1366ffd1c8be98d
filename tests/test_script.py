"""The script as its user meets it: run as a process, on made-up reviews."""

import re
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY


def one_error_line(process, *words):
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1, process.stderr
    for word in words:
        assert word in process.stderr


def test_prints_the_articles_lines_and_nothing_else(run):
    process = run("--number-of-epochs", "2", "--max-sequence-length", "20")
    assert process.stderr == ""
    assert "\b" not in process.stdout and "\x1b" not in process.stdout
    lines = process.stdout.splitlines()
    assert lines[:2] == ["(300,)", "(100,)"]
    summary = " ".join(lines[2:-6])
    for text in ("(None, 20, 15)", "(None, 10)", "(None, 1)"):
        assert text in summary
    for count in ("75,000", "1,040", "11", "76,051"):
        assert re.search(rf"\D{count}\D", summary)
    assert "Total params: 76,051 " in summary  # none of the optimizer's
    assert "(100 test reviews" in lines[-2]
    assert lines[-1].startswith("Model kept in lstm.keras")
    assert re.match(r"Epoch 1/2 - \d+\.\ds - .*val_loss: \d\.\d{4}", lines[-6])
    assert lines[-5].startswith("Epoch 2/2 - ")
    assert re.fullmatch(
        r"Test results - Loss: \d\.\d{4} - Accuracy: \d+\.\d\d%", lines[-4]
    )
    assert re.fullmatch(
        r"Time - load: \d+\.\ds - fit: \d+\.\ds - evaluate: \d+\.\ds", lines[-3]
    )


def test_tuned_preset(run):
    process = run("--preset", "tuned", *TINY, "--validation-split", "0.2")
    assert process.stderr == ""
    assert "(None, 30)" in process.stdout
    assert "val_loss" in process.stdout


def test_help_and_wrong_flags_answer_before_tensorflow_is_imported(run):
    start = time.perf_counter()
    text = run("--help").stdout
    wrong = run("--number-of-epoch", "1", expect=2)
    assert time.perf_counter() - start < 2  # importing TensorFlow alone takes longer
    one_error_line(wrong, "--number-of-epoch")
    article, beyond = text.split("beyond the article:")
    assert "--batch-size" in article and "(default: 128)" in article
    assert "--seed" in beyond


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "0"], "batch_size"),
        (["--batch_size=x"], "--batch-size"),
        (["--num-distinct-words", "3"], "num_distinct_words"),
        (["--validation-split", "1"], "validation_split"),
        (["--validation-split", "nan"], "validation_split"),
        (["--preset", "best"], "preset"),
        (["--lstm-options", "dropout"], "NAME=VALUE"),
        (["--lstm-options", "return_state=true"], "return_state"),
        (["--lstm-options", "drop=0.2"], "drop"),
        (["--lstm-options", "dropout=much"], "dropout"),
        (["stray"], "stray"),
    ],
)
def test_bad_configuration_is_one_line(run, arguments, words):
    one_error_line(run(*arguments, expect=2), words)


@pytest.mark.parametrize("name", ["adamm", "LossScaleOptimizer"])
def test_what_keras_refuses_is_one_line(run, name):
    one_error_line(run("--optimizer", name, expect=2), "optimizer: ", name)


def test_every_lstm_option_works(run):
    options = [
        "units=7",
        "activation=relu",
        "recurrent_activation=hard_sigmoid",
        "use_bias=true",
        "kernel_initializer=he_normal",
        "recurrent_initializer=glorot_uniform",
        "bias_initializer=zeros",
        "unit_forget_bias=false",
        "kernel_regularizer=l2",
        "recurrent_regularizer=l1",
        "bias_regularizer=l2",
        "activity_regularizer=l2",
        "kernel_constraint=max_norm",
        "recurrent_constraint=unit_norm",
        "bias_constraint=non_neg",
        "dropout=0.2",
        "recurrent_dropout=0.1",
        "go_backwards=true",
        "unroll=true",
    ]
    process = run(*TINY, "--lstm-options", *options, "--max-sequence-length", "5")
    assert "(None, 7)" in process.stdout


def test_no_network_and_no_copy(run):
    process = run(IMDB_STAND_IN="", expect=2)
    one_error_line(process, "imdb.npz", "storage.googleapis.com", "datasets")


def test_damaged_copy(run, reviews, tmp_path):
    damaged = tmp_path / "imdb.npz"
    whole = reviews.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    process = run(IMDB_STAND_IN=str(damaged), expect=2)
    one_error_line(process, str(damaged), "damaged", "delete it")


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
    assert process.stdout == f"keras {at_import}\n"

"""What comes after training: the kept model, predictions, one's own reviews, curves."""

import csv
import os
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
from conftest import ROOT, TINY

import lstm

SAMPLE = str(ROOT / "tests" / "data" / "reviews.csv")
WORDS = [f"word{rank}" for rank in range(1, 150)]


def trained(preset, **fields):
    """A model with random weights that knows its words, and its Config."""
    pairs = [f"word{rank} word{rank + 1}" for rank in range(1, 96, 5)]
    fields["num_word_pairs"] = len(pairs) if preset == "large" else 0
    config = lstm.Config(
        preset=preset, max_sequence_length=20, num_distinct_words=100, **fields
    )
    model = lstm.build_model(config)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    model.vocabulary = WORDS[:96] + pairs[: config.num_word_pairs]
    model.rarest = config.rarest
    return model, config


@pytest.mark.parametrize("preset", lstm.PRESETS)
def test_text_gives_what_its_ids_give(preset, tmp_path):
    model, config = trained(preset)
    rng = np.random.default_rng(1)
    ranks = [list(map(int, rng.integers(1, 150, n))) for n in (0, 1, 19, 20, 21, 70)]
    ranks[-1][:3] = 6, 7, 1  # a pair, where there are pairs
    texts = [" ".join(WORDS[rank - 1] for rank in review) for review in ranks]
    tokens = lstm.pad(ranks, model.vocabulary, config)
    assert (tokens.max() > 99) == (preset == "large")
    expected = model.predict(tokens, verbose=0)[:, 0]
    path = str(tmp_path / "kept.keras")
    lstm.save(model, path)
    for used in (model, lstm.load(path)):
        probabilities = lstm.predict(texts, used)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert lstm.predict([], model).shape == (0,)


def test_words_are_split_as_imdbs():
    text = "Don't MISS it!<br /><br />10/10\t(really)..."
    assert lstm.words_of(text) == [
        "don't",
        "miss",
        "it",
        "br",
        "br",
        "10",
        "10",
        "really",
    ]


def test_kept_model_needs_keras_alone(tmp_path):
    model, _ = trained("tuned")
    path = str(tmp_path / "kept.keras")
    lstm.save(model, path)
    code = f"""
import sys
import keras, tensorflow as tf
model = keras.saving.load_model({path!r}, safe_mode=True)
words = ["[START]", "word1", "word7"] + [""] * 17
print(float(model.predict(tf.constant([words]), verbose=0)[0, 0]))
assert "lstm" not in sys.modules
"""
    process = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    expected = lstm.predict(["word1 word7"], model)[0]
    assert float(process.stdout) == pytest.approx(expected, rel=1e-5)


def test_train_keep_predict(run, tmp_path):
    run("--data", SAMPLE, *TINY, "--number-of-epochs", "12", "--batch-size", "16")
    texts = [
        "I loved every minute",
        "I fell asleep twice",
        "",
        "\x1b[31m 😀 qqqq",
        "x" * 99,
    ]
    lines = run("--predict", *texts).stdout.splitlines()
    assert len(lines) == len(texts)
    assert lines[0].startswith("I loved every minute - positive - 0.")
    assert lines[1].startswith("I fell asleep twice - negative - 0.")
    assert "\x1b" not in lines[3]
    assert len(lines[4]) < 80
    piped = subprocess.run(
        [sys.executable, str(ROOT / "lstm.py"), "--predict", "-"],
        input="\n".join(texts[:3]).encode()
        + b"\nnul \0 and \xff\n"
        + b"big " * 250_000,
        capture_output=True,
        cwd=tmp_path,
        check=True,
    )
    assert piped.stderr == b""
    piped = piped.stdout.decode().splitlines()
    assert piped[:2] == lines[:2]
    assert len(piped) == 5


def test_predict_without_a_model(run, tmp_path):
    process = run("--predict", "text", expect=2)
    assert process.stderr.count("\n") == 1
    assert "there is no lstm.keras" in process.stderr
    (tmp_path / "bad.keras").write_bytes(b"not a model")
    process = run("--predict", "text", "--model-path", "bad.keras", expect=2)
    assert process.stderr.count("\n") == 1
    assert "bad.keras is no model" in process.stderr


def test_unsafe_model_is_refused(tmp_path):
    marker = tmp_path / "ran"
    target = str(marker)
    payload = keras.layers.Lambda(lambda x: os.mkdir(target) or x, output_shape=(1,))
    model = keras.Sequential([keras.Input((1,)), payload])
    model(np.ones((1, 1)))
    marker.rmdir()  # the payload works
    path = str(tmp_path / "lambda.keras")
    model.save(path)
    with pytest.raises(lstm.UserError, match="is no model"):
        lstm.load(path)
    assert not marker.exists()


def test_failed_save_keeps_the_old_model_and_the_new_one(tmp_path, monkeypatch):
    model, _ = trained("article")
    path = tmp_path / "kept.keras"
    path.write_bytes(b"the old one")
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))
    save = keras.Model.save

    def full(self, target, **options):
        if not target.startswith(str(spare)):
            raise OSError(28, "No space left on device")
        save(self, target, **options)

    monkeypatch.setattr(keras.Model, "save", full)
    with pytest.raises(lstm.UserError, match="No space left") as refused:
        lstm.save(model, str(path))
    assert path.read_bytes() == b"the old one"
    assert sorted(tmp_path.iterdir()) == [path, spare]
    (rescued,) = spare.glob("*/lstm.keras")
    assert str(refused.value).endswith(f"the model is in {rescued}")
    lstm.load(str(rescued))


def test_path_that_cannot_be_written_is_refused_before_training(run):
    process = run("--model-path", "no/folder/lstm.keras", expect=2)
    assert process.stdout == ""
    assert process.stderr.startswith("lstm.py: model_path: no/folder/lstm.keras")


def test_csv(tmp_path):
    path = tmp_path / "own.csv"
    rows = 'good good film,Positive\r\n"bad, bad\nfilm",0\r\n\r\n' * 10
    path.write_bytes(("\ufeffText,LABEL\r\n" + rows).encode())
    (x_train, y_train), (x_test, y_test), words = lstm.read_csv(str(path), seed=1)
    assert x_train.shape == (16,) and x_test.shape == (4,)
    assert sorted(y_test) == [0, 0, 1, 1]
    assert sorted(words[:3]) == ["bad", "film", "good"]
    for x, y in ((x_train, y_train), (x_test, y_test)):
        for review, label in zip(x, y):
            text = " ".join(words[rank - 1] for rank in review)
            assert text == ("good good film" if label else "bad bad film")


def test_csv_split_and_vocabulary_of_the_training_part(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "split,text,label\ntrain,b a b,1\ntrain,b a,0\nTest,new b,1\ntest,b,negative\n"
    )
    (x_train, _), (x_test, _), words = lstm.read_csv(str(path), seed=1)
    assert words == ["b", "a"]
    assert sorted(map(list, x_train)) == [[1, 2], [1, 2, 1]]
    assert sorted(map(list, x_test)) == [[1], [2**30, 1]]
    config = lstm.Config(max_sequence_length=3)
    assert sorted(map(list, lstm.pad(x_test, words, config))) == [[0, 1, 4], [1, 2, 4]]


def test_csv_without_a_word(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,label\n" + ",1\n...,0\n" * 10)
    (x_train, _), _, words = lstm.read_csv(str(path), seed=1)
    assert words == []
    config = lstm.Config(max_sequence_length=2)
    assert set(map(tuple, lstm.pad(x_train, words, config))) == {(0, 1)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "column text"),
        (b"text,stars\na,1\n", "column label"),
        (b"text,label\na,1\nb,2\n", "line 3: label: '2'"),
        (b"text,label\na,1\nb,1,x\n", "line 3: has 3 columns"),
        (b"text,label,split\na,1,dev\n", "line 2: split: 'dev'"),
        (b"text,label\n\xff\xfe,1\n", "is not UTF-8"),
        (b'text,label\n"a,1\n', "line 2: "),
        (b"text,label\na,1\nb,1\n", "both labels"),
        (None, "No such file"),
    ],
)
def test_bad_csv_is_refused(tmp_path, content, words):
    path = tmp_path / "own.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(lstm.UserError) as refused:
        lstm.read_csv(str(path), seed=1)
    assert words in str(refused.value) and str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_curves(run, tmp_path):
    pytest.importorskip("matplotlib")
    run("--data", SAMPLE, *TINY, "--number-of-epochs", "2", "--plot", "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}


def test_curves_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lstm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(lstm.UserError, match="plot: .* pip install matplotlib"):
        lstm.check_paths(lstm.Config(plot="curves.png"))

"""What the tests share: made-up reviews in Keras's file layout, and the script run."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = str(ROOT / "tests" / "imdb_stand_in")
SAMPLE = str(ROOT / "tests" / "data" / "reviews.csv")
WORDS = [f"word{rank}" for rank in range(1, 150)]  # of the made-up reviews
TINY = ["--number-of-epochs", "1", "--num-distinct-words", "100"]
TINY += ["--max-sequence-length", "20"]
# As a notebook user shortens a run: by editing the defaults.
SHORTER = {
    "number_of_epochs: int = 5": "number_of_epochs: int = 1",
    "num_distinct_words: int = 5000": "num_distinct_words: int = 100",
    "max_sequence_length: int = 300": "max_sequence_length: int = 20",
}

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tests import Keras before lstm
sys.path[:0] = [STAND_IN, str(ROOT)]
sys.modules.pop("sitecustomize", None)  # a system's own
importlib.import_module("sitecustomize")


def write_reviews(path, train=300, test=100, seed=0):
    """An imdb.npz of made-up reviews; the first ten ranks are words of praise."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", train), ("test", test)):
        labels = (np.arange(count) < count / 2).astype("int64")[::-1].copy()
        reviews = np.empty(count, object)
        for i, label in enumerate(labels):
            words = rng.integers(21, 150, rng.integers(1, 40))
            praise = rng.integers(1 if label else 11, 11 if label else 21, 8)
            reviews[i] = [int(word) for word in rng.permutation([*words, *praise])]
        arrays[f"x_{part}"], arrays[f"y_{part}"] = reviews, labels
    np.savez_compressed(path, **arrays)
    index = {word: rank for rank, word in enumerate(WORDS, 1)}
    path.with_name("imdb_word_index.json").write_text(json.dumps(index))


def pytest_configure(config):
    """Pass over two of Keras's warnings that some of the tests provoke by the dozen."""
    for text in ("Layer .* was passed an input with a mask", "__array__ implement"):
        config.addinivalue_line("filterwarnings", f"ignore:{text}")


@pytest.fixture(scope="session", autouse=True)
def reviews(tmp_path_factory):
    """The file that stands in for IMDB, here and in the processes of the tests."""
    path = tmp_path_factory.mktemp("imdb") / "imdb.npz"
    write_reviews(path)
    os.environ["IMDB_STAND_IN"] = str(path)
    return path


def tiny(preset="article", **fields):
    """A Config for made-up reviews that is done in a moment."""
    import lstm

    small = {"num_distinct_words": 100, "max_sequence_length": 20, "batch_size": 32}
    small |= {"number_of_epochs": 1, "verbosity_mode": 0}
    small["num_bigrams"] = 20 if preset == "large" else 0
    return lstm.Config(**lstm.PRESETS[preset] | small | fields)


def as_number(first, second):
    """The number of a bigram of two ids."""
    return first * 2**32 + second


def prepared(reviews, bigrams, config):
    """The token ids that the LSTM reads of reviews, lists of token ids."""
    import lstm

    array = np.empty(len(reviews), object)
    array[:] = reviews
    return lstm.prepare(array, lstm.token_chooser(bigrams, config))


def random_model(*arguments, words=WORDS, **fields):
    """A model of token ids with random weights, the same one of texts, its Config."""
    import lstm

    config = tiny(*arguments, **fields)
    model = lstm.build_model(config)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    size = config.num_distinct_words
    pairs = pairwise(range(3, size))  # word1 word2, word2 word3, and so on
    bigrams = [as_number(*pair) for pair in pairs][: config.num_bigrams]
    chooser = lstm.token_chooser(bigrams, config)
    return model, lstm.with_texts(model, words[: size - 3], chooser), config


@pytest.fixture(scope="session", params=["article", "tuned"])
def trained(request, tmp_path_factory):
    """What `main` returned, as in a notebook, and the lines that it printed."""
    import lstm

    path = str(tmp_path_factory.mktemp("trained") / "lstm.keras")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        results = lstm.main(tiny(request.param, model_path=path))
    return *results, output.getvalue().splitlines(), path


@pytest.fixture
def environment(tmp_path):
    """The environment of a process that finds the made-up reviews."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_"))}
    kept.pop("CUDA_VISIBLE_DEVICES", None)
    path = os.pathsep.join([STAND_IN, str(ROOT)])
    return kept | {"PYTHONPATH": path, "KERAS_HOME": str(tmp_path / "keras")}


@pytest.fixture
def python(environment, tmp_path):
    """Run `python ARGUMENTS` in an empty folder and return the process."""

    def run(*arguments, expect=0, text=None, **variables):
        process = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            input=text,
            cwd=tmp_path,
            env=environment | variables,
            check=False,
            timeout=200,
        )
        assert process.returncode == expect, process.stdout + process.stderr
        return process

    return run


@pytest.fixture
def run(python):
    """Run `python lstm.py ARGUMENTS` in an empty folder and return the process."""
    return lambda *arguments, **how: python(str(ROOT / "lstm.py"), *arguments, **how)


def assert_one_line(text, *words):
    """A mistake is told in one line, after argparse's usage if it is a flag's."""
    *usage, line = text.splitlines()
    assert line.startswith("lstm.py: "), text
    assert usage == [] or len(usage) == 1 and usage[0].startswith("usage: "), text
    for word in words:
        assert word in line

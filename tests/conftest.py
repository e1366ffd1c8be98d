"""What the tests share: made-up reviews in Keras's file layout, and the script run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = str(ROOT / "tests" / "imdb_stand_in")
TINY = ["--number-of-epochs", "1", "--num-distinct-words", "100"]
TINY += ["--max-sequence-length", "20"]

sys.path.insert(0, str(ROOT))


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
    index = {f"word{rank}": rank for rank in range(1, 150)}
    path.with_name("imdb_word_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    path = tmp_path_factory.mktemp("imdb") / "imdb.npz"
    write_reviews(path)
    return path


@pytest.fixture
def environment(reviews, tmp_path):
    """The environment of a process that finds the made-up reviews."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_"))}
    kept.pop("CUDA_VISIBLE_DEVICES", None)
    return kept | {
        "PYTHONPATH": STAND_IN,
        "IMDB_STAND_IN": str(reviews),
        "KERAS_HOME": str(tmp_path / "keras"),
    }


@pytest.fixture
def run(environment, tmp_path):
    """Run `python lstm.py ARGUMENTS` in an empty folder and return the process."""

    def run(*arguments, expect=0, **variables):
        process = subprocess.run(
            [sys.executable, str(ROOT / "lstm.py"), *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment | variables,
            check=False,
            timeout=100,
        )
        assert process.returncode == expect, process.stdout + process.stderr
        return process

    return run

"""Any input gives a result or one line that says what was wrong with it.

EXAMPLES=2000 python -m pytest tests/test_fuzz.py searches longer than the suite does.
"""

import contextlib
import functools
import io
import os
import tempfile
from dataclasses import fields

import keras
import numpy as np
from conftest import random_model, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lstm

settings.register_profile(
    "examples",
    max_examples=int(os.environ.get("EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("examples")

NAMES = [f.name for f in fields(lstm.Config)]
LINE = st.text(st.characters(exclude_categories=["Cc", "Cs"]))
ANY = st.none() | st.booleans() | st.integers() | st.floats() | LINE | st.binary()
ANY |= st.integers().map(str) | st.floats().map(str) | st.lists(LINE)
ANY |= st.sampled_from(["last", "concat", "a.keras"])
ANY |= st.dictionaries(LINE, st.floats())


def result_or_one_line(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except lstm.UserError as error:
        assert str(error) and "\n" not in str(error), str(error)
        return None


@given(st.dictionaries(st.sampled_from(NAMES), ANY, min_size=1, max_size=2))
def test_configuration(values):
    try:
        config = lstm.Config(**values)
    except lstm.UserError as error:
        name, _, reason = str(error).partition(": ")
        assert name in values and reason and "\n" not in reason
        return
    for name, value in values.items():
        taken = getattr(config, name)
        if type(taken) in (bool, int, float):
            assert taken == float(value)
        else:
            assert taken == value or type(value) is not type(taken)
    assert lstm.Config(**vars(config)) == config


FLAGS = st.sampled_from(["--" + name.replace("_", "-") for name in NAMES])
VALUES = st.text(max_size=8) | st.integers(-3, 9).map(str) | st.floats().map(str)
VALUES |= st.sampled_from(["tuned", "article", "adam", "dropout=0.1", "units=[", "-"])


@given(st.lists(FLAGS | VALUES | st.tuples(FLAGS, VALUES).map("=".join), max_size=6))
def test_command_line(arguments):
    if {"-h", "--help"} & set(arguments):
        return
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            config, _ = lstm.parse_command_line(arguments)
        assert isinstance(config, lstm.Config) and not errors.getvalue()
    except SystemExit as stopped:
        assert stopped.code == 2
        usage, _, rest = errors.getvalue().partition("\n")
        assert usage.startswith("usage: ") and ": error: " in rest
        assert "Traceback" not in rest


CELL = st.text(max_size=20) | st.sampled_from(["0", "1", "positive", "train", "test"])
ROW = st.tuples(CELL, st.sampled_from(["0", "1", "negative", " 1"]) | CELL)
TABLE = st.lists(ROW.map(lambda row: ",".join(row)), max_size=12)
HEAD = ["text,label", "label,text", "Text,label,split", "review,Sentiment"]
TABLE = st.tuples(st.sampled_from(HEAD), TABLE, st.sampled_from(",;\t")).map(
    lambda table: "\n".join([table[0], *table[1]]).replace(",", table[2])
)
GOOD = st.lists(st.tuples(st.text(max_size=30), st.sampled_from("01")), min_size=20)


def written(rows):
    rows = [("text", "label"), *rows, *[("x", "0"), ("y", "1")] * 9]
    quoted = (f'"{text.replace(chr(34), chr(34) * 2)}",{label}' for text, label in rows)
    return "\n".join(quoted)


ENCODED = (TABLE | GOOD.map(written)).map(lambda text: text.encode("utf-8", "replace"))


@given(st.binary(max_size=200) | ENCODED)
def test_csv(content):
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(content)
        file.flush()
        read = result_or_one_line(lstm.load_data, tiny(data=file.name))
    if read:
        (x_train, y_train), (x_test, y_test), words, _ = read
        assert len(x_train) == len(y_train) and len(x_test) == len(y_test)
        assert set(y_train) == set(y_test) == {0, 1}
        assert len(words) == len(set(words))
        assert max(max(x) for x in [*x_train, *x_test]) < 3 + len(words)


@given(st.text(st.characters()))
def test_words(text):
    words = lstm.tidy(text).split()
    assert lstm.tidy(" ".join(words)).split() == words
    assert not set("".join(words)) & set('!"#.,<>/\n\t “”’…—\u00a0\ufeff')


@functools.cache
def chooser(length, masked, rarest):
    config = tiny(max_sequence_length=length, masked=masked, rarest=rarest)
    return lstm.token_chooser([], config)


@given(
    st.lists(st.lists(st.integers(1, 30), max_size=30), min_size=1, max_size=9),
    st.sampled_from([1, 2, 7, 20]),
    st.integers(3, 40),
    st.booleans(),
    st.booleans(),
)
def test_padding(ranks, length, words, masked, rarest):
    choose = chooser(length, masked, rarest)
    reviews = [[2, *(r + 2 if r + 2 < words else 1 for r in rank)] for rank in ranks]
    tokens = keras.utils.pad_sequences(reviews, padding="post", dtype="int64")
    padded = choose(tokens).numpy()
    assert padded.shape == (len(reviews), length)
    for review, row in zip(reviews, padded):
        left = list(row[row != 0])
        assert left == list(row[: len(left)] if masked else row[length - len(left) :])
        if rarest:  # of those as rare as the `length`-th rarest, the last
            known = [token for token in review if token != 1]
            least = sorted(known)[-length:][0]
            review = [token for token in known if token >= least]
        assert left == review[-length:]


_, MODEL, _ = random_model("large")


@given(st.lists(st.text(st.characters()), min_size=3, max_size=3))
def test_any_text_is_judged_on_a_line_of_its_own(texts):
    output = io.StringIO()
    load, lstm.load = lstm.load, lambda path: MODEL
    try:
        with contextlib.redirect_stdout(output), np.errstate(all="raise"):
            lstm.classify(texts, tiny())
    finally:
        lstm.load = load
    *lines, rest = output.getvalue().split("\n")
    assert len(lines) == len(texts) and rest == ""
    for line in lines:
        line = line.removesuffix(" - no known word")
        _, label, probability = line.rsplit(" - ", 2)
        assert label == ("positive" if float(probability) > 0.5 else "negative")
        assert len(line) < 80

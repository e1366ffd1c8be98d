"""Any input gives a result or one line that says what was wrong with it.

EXAMPLES=2000 python -m pytest tests/test_fuzz.py searches longer than the suite does.
"""

import contextlib
import io
import os
import tempfile
from dataclasses import fields

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
KINDS = {int: st.integers(), float: st.floats(), bool: st.booleans()}
KINDS |= {str: LINE | st.sampled_from(["last", "concat", "a.keras"])}
KINDS |= {tuple: st.lists(LINE).map(tuple), dict: st.dictionaries(LINE, st.floats())}


def result_or_one_line(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except lstm.UserError as error:
        assert str(error) and "\n" not in str(error), str(error)
        return None


@given(
    st.fixed_dictionaries(
        {}, optional={f.name: KINDS[f.type] for f in fields(lstm.Config)}
    )
)
def test_configuration(values):
    config = result_or_one_line(lstm.Config, **values)
    if config:
        for name, value in values.items():
            assert getattr(config, name) is value


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
        read = result_or_one_line(lstm.read_csv, tiny(data=file.name))
    if read:
        (x_train, y_train), (x_test, y_test), words = read
        assert len(x_train) == len(y_train) and len(x_test) == len(y_test)
        assert set(y_train) == set(y_test) == {0, 1}
        assert [*words][:4] == [*lstm.SPECIAL]
        assert [*words.values()] == [*range(len(words))]


@given(st.text(st.characters()))
def test_words(text):
    words = lstm.split_words(text)
    assert all(words)
    assert lstm.split_words(" ".join(words)) == words
    assert not set("".join(words)) & set('!"#.,<>/\n\t “”’…—\u00a0\ufeff')


@given(
    st.lists(st.lists(st.integers(1, 30), max_size=30), min_size=1, max_size=9),
    st.integers(1, 20),
    st.integers(4, 40),
    st.booleans(),
    st.booleans(),
)
def test_padding(ranks, length, words, masked, rarest):
    config = tiny(max_sequence_length=length, masked=masked, rarest=rarest)
    reviews = [[2, *(r + 3 if r + 3 < words else 1 for r in rank)] for rank in ranks]
    padded = lstm.prepare(reviews, {}, config)
    assert padded.shape == (len(reviews), length)
    for review, row in zip(reviews, padded):
        left = list(row[row != 0])
        assert left == list(row[: len(left)] if masked else row[length - len(left) :])
        known = [token for token in review if token != 1 or not rarest]
        assert len(left) == min(len(known), length)
        if not rarest:
            assert left == known[-length:]
        else:
            assert sorted(left) == sorted(known)[-length:]
            rest = iter(known)
            assert all(token in rest for token in left)  # in their order


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

"""Any input gives a result or one line that says what was wrong with it.

EXAMPLES=2000 python -m pytest tests/test_fuzz.py searches longer than the suite does.
"""

import contextlib
import io
import os
import tempfile
from dataclasses import fields

import numpy as np
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
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-10, 1000)
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([*lstm.PRESETS, "last", "all", "a.keras", "x.csv"])
    | st.lists(st.text(max_size=5), max_size=3)
    | st.dictionaries(
        st.sampled_from(["units", "dropout", "stateful"]) | st.text(), st.floats()
    )
)


def result_or_one_line(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except lstm.UserError as error:
        assert str(error) and "\n" not in str(error), str(error)
        return None


@given(st.dictionaries(st.sampled_from([*NAMES, "layers"]), VALUES, max_size=4))
def test_configuration(given_values):
    config = result_or_one_line(lstm.Config, **given_values)
    if config:
        for name, value in given_values.items():
            assert getattr(config, name) is value


FLAGS = st.sampled_from(["--" + name.replace("_", "-") for name in NAMES])
WORDS = st.text(max_size=8) | st.integers(-3, 9).map(str) | st.floats().map(str)
WORDS |= st.sampled_from(["tuned", "article", "adam", "dropout=0.1", "units=[", "-"])


@given(st.lists(FLAGS | WORDS | st.tuples(FLAGS, WORDS).map("=".join), max_size=6))
def test_command_line(arguments):
    if {"-h", "--help"} & set(arguments):
        return
    parsed = result_or_one_line(lstm.parse_command_line, arguments)
    assert parsed is None or isinstance(parsed[0], lstm.Config)


CELL = st.text(max_size=20) | st.sampled_from(["0", "1", "positive", "train", "test"])
ROW = st.tuples(CELL, st.sampled_from(["0", "1", "negative", " 1"]) | CELL)
TABLE = st.lists(ROW.map(lambda row: ",".join(row)), max_size=12)
TABLE = TABLE.map(
    lambda rows: "\n".join(["text,label", *rows]).encode("utf-8", "replace")
)
GOOD = st.lists(st.tuples(st.text(max_size=30), st.sampled_from("01")), min_size=20)


def written(rows):
    rows = [("text", "label"), *rows, *[("x", "0"), ("y", "1")] * 9]
    quoted = (f'"{text.replace(chr(34), chr(34) * 2)}",{label}' for text, label in rows)
    return "\n".join(quoted).encode("utf-8", "replace")


@given(st.binary(max_size=200) | TABLE | GOOD.map(written))
def test_csv(content):
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(content)
        file.flush()
        read = result_or_one_line(lstm.read_csv, file.name, seed=1)
    if read:
        (x_train, y_train), (x_test, y_test), words = read
        assert len(x_train) == len(y_train) and len(x_test) == len(y_test)
        assert set(y_train) == set(y_test) == {0, 1}
        assert len(words) == len(set(words))


@given(st.text())
def test_words(text):
    words = lstm.words_of(text)
    assert all(words)
    assert lstm.words_of(" ".join(words)) == words
    assert not set("".join(words)) & set('!"#.,<>/\n\t ')


@given(
    st.lists(st.lists(st.integers(1, 30), max_size=30), min_size=1, max_size=9),
    st.integers(1, 20),
    st.integers(4, 40),
    st.booleans(),
    st.booleans(),
)
def test_padding(reviews, length, words, masked, rarest):
    config = lstm.Config(max_sequence_length=length, masked=masked, rarest=rarest)
    padded = lstm.pad(reviews, ["word"] * (words - 4), config)
    assert padded.shape == (len(reviews), length)
    assert padded.min() >= 0 and padded.max() < words
    for review, row in zip(reviews, padded):
        left = row[row != lstm.PADDING]
        known = [rank + 3 if rank + 3 < words else 2 for rank in review]
        if rarest:
            known = [token for token in known if token != 2]
        if len(known) < length:
            assert list(left) == [lstm.START, *known]
            first = 0 if masked else length - len(left)
            assert row[first] == lstm.START
        elif not rarest:
            assert list(left) == known[-length:]
        else:
            assert row[0] == lstm.START and len(left) == length
            assert sorted(left[1:]) == sorted(known)[len(known) - length + 1 :]
            rest = iter(known)
            assert all(token in rest for token in left[1:])  # in their order


@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_text_is_printed_on_a_line_of_its_own(texts):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), np.errstate(all="raise"):
        judged, lstm.judged = lstm.judged, lambda texts, _: [(t, 0.7) for t in texts]
        try:
            lstm.print_predictions(texts, None)
        finally:
            lstm.judged = judged
    assert output.getvalue().count("\n") == len(texts)

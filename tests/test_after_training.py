"""What comes after training: the kept model, texts, predictions, one's own reviews."""

import gzip
import io
import json
import os
import re
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS, as_number, prepared, random_model, tiny

import lstm

TEXTS = ["word1 word7", "word3 " * 30, "", "word150 word9 word2", "word20 word4 word5"]


@pytest.fixture(scope="module")
def text_model():
    """A model that takes texts, with random weights."""
    return random_model("tuned")[1]


@pytest.fixture(scope="module")
def kept(text_model, tmp_path_factory):
    """The path where it is kept."""
    path = str(tmp_path_factory.mktemp("kept") / "lstm.keras")
    text_model.save(path)
    return path


def ids_of(text):
    """The token ids of a text of made-up words, of which the first 97 are known."""
    ranks = [int(word.removeprefix("word")) for word in text.split()]
    return [2, *(rank + 2 if rank < 98 else 1 for rank in ranks)]


@pytest.mark.parametrize("preset", ["article", "large"])
def test_text_gives_what_its_ids_give(preset, tmp_path):
    model, text_model, config = random_model(preset)
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, size)) for size in (0, 1, 19, 20, 21, 70)]
    texts[-1] += " word6 word7 word99"  # a bigram, where there are bigrams
    bigrams = [as_number(n + 3, n + 4) for n in range(config.num_bigrams)]
    tokens = prepared([ids_of(text) for text in texts], bigrams, config)
    assert (tokens.max() > 99) == (preset == "large")
    expected = model.predict(tokens, verbose=0)[:, 0]
    path = str(tmp_path / "kept.keras")
    text_model.save(path)
    for used in (text_model, lstm.load(path)):
        probabilities = lstm.predict(texts, used)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
        assert lstm.predict([], used).shape == (0,)
        (one,) = lstm.predict(texts[-1], used)
        assert one == pytest.approx(expected[-1], rel=1e-5)


def test_a_gpu_that_leaves_zeros_over_the_padding(text_model, monkeypatch, tmp_path):
    expected = lstm.predict(TEXTS, text_model)
    keras_loop = keras.layers.LSTM.inner_loop
    used = []

    def as_cudnn(self, sequences, initial_state, mask, training=False):
        used.append(self)
        last, states, final = keras_loop(self, sequences, initial_state, mask, training)
        return last, tf.where(mask[:, :, None], states, 0.0), final

    monkeypatch.setattr(lstm, "speed_up", lambda model: None)
    monkeypatch.setattr(keras.layers.LSTM, "inner_loop", as_cudnn)
    _, there, _ = random_model("tuned")
    path = str(tmp_path / "kept.keras")
    there.save(path)
    for model in (there, lstm.load(path)):
        np.testing.assert_allclose(lstm.predict(TEXTS, model), expected, rtol=1e-5)
        assert used.pop()


@pytest.mark.parametrize(
    ("masked", "options"),
    [
        (True, {"use_bias": False}),
        (True, {"recurrent_dropout": 0.3}),
        (False, {"unroll": True, "recurrent_dropout": 0.3}),
        (False, {"go_backwards": True}),
        (False, {"zero_output_for_mask": True}),
    ],
    ids=str,
)
def test_kept_model_gives_what_the_trained_one_gives(masked, options, tmp_path):
    fields = {"pooling": "concat", "dropout": 0.2, "lstm_options": options}
    model, text_model, config = random_model(masked=masked, **fields)
    path = str(tmp_path / "kept.keras")
    text_model.save(path)
    tokens = prepared([ids_of(text) for text in TEXTS], [], config)
    expected = model.predict(tokens, verbose=0)[:, 0]
    np.testing.assert_allclose(
        lstm.predict(TEXTS, lstm.load(path)), expected, rtol=1e-5
    )


def test_trained_model_is_a_model_of_keras(trained):
    model, _, _, lines, kept = trained
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    expected = lstm.predict(TEXTS, model)
    assert isinstance(model, keras.Model)
    for other in (keras.saving.load_model(kept), clone):
        assert other.count_params() == model.count_params()
        np.testing.assert_allclose(lstm.predict(TEXTS, other), expected, rtol=1e-5)
    assert lines[-1].startswith(f"Model kept in {kept} - try: ")
    assert lines[-2].endswith(" - on CPU")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (
            "Don't MISS it!<br /><br />10/10\t(really)...",
            "don't miss it br br 10 10 really",
        ),
        ("‘It’s’ “great”", "it's great"),
        ("\ufeffgood… film — very\u00a0good–ish", "good film very good ish"),
        ("«Très» café_noir 'tis", "très café noir tis"),
        ("ein\u200bs 日本 नमस्ते", "ein s 日本 नमस्ते"),
        ("", ""),
        ("... '' — ", ""),
    ],
)
def test_texts_are_written_as_imdbs(text, plain):
    assert lstm.tidy(text) == plain


def test_letters_in_either_form_are_one_word(tmp_path):
    composed, decomposed = "caf\u00e9 na\u00efve", "cafe\u0301 nai\u0308ve"
    assert lstm.tidy(composed) == lstm.tidy(decomposed)
    rows = f"{composed},1\n{decomposed},1\nfilm,0\n" * 10
    *_, words, _ = read(tmp_path / "own.csv", "text,label\n" + rows)
    assert len(words) == 3


@pytest.mark.parametrize("wrong", [float("nan"), None, b"word1", 3, ["word1"]], ids=str)
def test_what_is_no_text_is_refused(wrong, text_model):
    for texts in (["word1", wrong], ("word1", wrong)):
        with pytest.raises(lstm.UserError, match=r"\Atexts: .*\Z"):
            lstm.predict(texts, text_model)
    if wrong != ["word1"]:
        with pytest.raises(lstm.UserError, match=r"\Atexts: .*\Z"):
            lstm.predict(wrong, text_model)


def test_cells_of_pandas_are_texts(text_model):
    pandas = pytest.importorskip("pandas")
    model, texts = text_model, TEXTS[:3]
    expected = lstm.predict(texts, model)
    index = [7, 8, 9]
    for cells in (
        pandas.Series(texts, index),
        pandas.Series(texts, index, dtype="string"),
        pandas.DataFrame({"review": texts}, index),
        pandas.DataFrame({"review": texts, "label": 1}, index)["review"],
        np.array(texts),
        np.array(texts, object),
    ):
        np.testing.assert_array_equal(lstm.predict(cells, model), expected)
    for gap in (None, float("nan"), pandas.NA):
        with pytest.raises(lstm.UserError, match="texts: "):
            lstm.predict(pandas.Series(["word1", gap]), model)
    assert lstm.predict(pandas.Series([], dtype=object), model).shape == (0,)


def test_text_without_a_known_word_is_marked(kept, capsys):
    texts = ["zzz qqq", "", "zzz word1", "..."]
    lstm.classify(texts, tiny(model_path=kept))
    lines = capsys.readouterr().out.splitlines()
    marked = [line.endswith(" - no known word") for line in lines]
    assert marked == [True, True, False, True]
    number = r" - (positive|negative) - 0\.\d{4}"
    for text, line in zip(texts, lines, strict=True):
        line = line.removesuffix(" - no known word")
        assert re.fullmatch(re.escape(text) + number, line)


@pytest.fixture
def classify(text_model, monkeypatch):
    """Classify texts with a model that is loaded already."""

    def classify(texts, **fields):
        monkeypatch.setattr(lstm, "load", lambda path: text_model)
        lstm.classify(texts, tiny(**fields))

    return classify


class Pipe(io.RawIOBase):
    """Gives a part each time it is read, as a pipe or a keyboard does."""

    def __init__(self, *parts):
        self.parts, self.asked = [*parts], 0

    def readable(self):
        return True

    def readinto(self, buffer):
        self.asked += 1
        part = self.parts.pop(0) if self.parts else b""
        if part[len(buffer) :]:
            self.parts.insert(0, part[len(buffer) :])
        part = part[: len(buffer)]
        buffer[: len(part)] = part
        return len(part)


def piped(*parts):
    return io.TextIOWrapper(io.BufferedReader(Pipe(*parts)), "ascii")


@pytest.mark.parametrize(
    ("parts", "starts"),
    [
        ([b"word1 word2\nword3"], ["word1 word2", "word3"]),
        ([b"word1\r\n", b"wo", b"rd3\nword4\n"], ["word1", "word3", "word4"]),
        ([b"\n\n"], ["", ""]),
        (
            ["caf\u00e9 \u2028 \x0c a\n".encode(), b"\xff"],
            ["caf\u00e9 a", "\ufffd"],
        ),
        ([], []),
    ],
    ids=str,
)
def test_lines_of_standard_input(parts, starts, classify, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", piped(*parts))
    classify(["-"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" - ")[0] for line in lines] == starts


def test_lines_are_answered_as_they_arrive(classify, monkeypatch):
    stdin = piped(b"word1\n", b"word2\nword3\n", b"word4\n")
    monkeypatch.setattr("sys.stdin", stdin)
    seen, predict = [], lstm.predict

    def spy(texts, model):
        seen.append((stdin.buffer.raw.asked, texts))
        return predict(texts, model)

    monkeypatch.setattr(lstm, "predict", spy)
    classify(["-"])
    assert seen == [(1, ["word1"]), (2, ["word2", "word3"]), (3, ["word4"])]


def test_no_text_gives_no_line_and_no_picture(classify, monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sys.stdin", piped())
    picture = tmp_path / "reading.png"
    classify(["-"], plot=picture)
    assert capsys.readouterr().out == "" and not picture.exists()


def test_strange_texts_are_judged(text_model):
    texts = ["\ud800 \udfff", "\0", "a\0b" * 400, "😀", "\u2028", "big " * 100_000]
    probabilities = lstm.predict(texts, text_model)
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_unsafe_model_is_refused(tmp_path):
    marker = tmp_path / "ran"
    target = str(marker)
    payload = keras.layers.Lambda(lambda x: os.mkdir(target) or x, output_shape=(1,))
    model = keras.Sequential([keras.Input((1,)), payload])
    model(np.ones((1, 1)))
    marker.rmdir()  # the payload works
    path = str(tmp_path / "lambda.keras")
    model.save(path)
    with pytest.raises(lstm.UserError, match=r"\Amodel_path: .*(unsafe|ambda)"):
        lstm.load(path)
    assert not marker.exists()


@pytest.fixture
def damaged(kept, tmp_path):
    """Write a kept model of another Keras that this one cannot read."""

    def write(version, **changes):
        path = str(tmp_path / "damaged.keras")
        with zipfile.ZipFile(kept) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name in ("metadata.json", "config.json"):
                    values = json.loads(content)
                    keep = name == "config.json"
                    values |= changes if keep else {"keras_version": version}
                    content = json.dumps(values)
                new.writestr(name, content)
        return path

    return write


def test_model_of_another_keras(damaged):
    path = damaged("3.99.0", class_name="LaterModel")
    with pytest.raises(lstm.UserError, match=r"\Amodel_path: .*\Z") as refused:
        lstm.load(path)
    for word in (path, keras.__version__, "LaterModel"):
        assert word in str(refused.value)
    expected = lstm.predict(TEXTS, lstm.load(damaged("3.99.0")))
    assert np.isfinite(expected).all()  # what can be read is read


def test_model_of_an_earlier_form(tmp_path):
    path = str(tmp_path / "lstm.keras")
    model, *_ = random_model()
    words = keras.Input((20,), dtype="string", name="padding_then_last_words")
    lookup = keras.layers.StringLookup(vocabulary=WORDS[:90], mask_token="")
    for earlier in (model, keras.Model(words, model(lookup(words)))):
        earlier.save(path)
        with pytest.raises(lstm.UserError) as refused:
            lstm.load(path)
        reason = "kept by an earlier lstm.py; train again"
        assert str(refused.value) == f"model_path: {path}: {reason}"


@pytest.mark.parametrize("name", ["c.xyz", "no/folder/c.png", "own.csv"])
def test_picture_that_cannot_be_drawn(name, classify, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.csv").write_text("mine")
    with pytest.raises(lstm.UserError, match=r"\Aplot: .*\.png.*\Z"):
        classify(["word1"], plot=name)
    assert capsys.readouterr().out.startswith("word1 - ")  # nothing is lost
    assert (tmp_path / "own.csv").read_text() == "mine"


def test_picture_without_matplotlib(classify, monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(lstm.UserError, match=r"\Aplot: .*matplotlib.*\Z"):
        classify(["word1"], plot="reading.png")


def read(path, content, **fields):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return lstm.load_csv(tiny(data=path, **fields))


def test_csv(tmp_path):
    rows = 'good good film,Positive\r\n"bad, bad\nfilm",0\r\n\r\n' * 25
    parts = read(tmp_path / "own.csv", "\ufeffText,LABEL\r\n" + rows)
    (x_train, y_train), (x_test, y_test), words, _ = parts
    assert len(x_train) == 40 and len(x_test) == 10
    assert sorted([*y_train, *y_test]) == [0] * 25 + [1] * 25
    assert sorted(words) == ["bad", "film", "good"]
    for x, y in ((x_train, y_train), (x_test, y_test)):
        for review, label in zip(x, y):
            assert review[0] == 2
            text = " ".join(words[token - 3] for token in review[1:])
            assert text == ("good good film" if label else "bad bad film")


def test_csv_split_and_vocabulary_of_the_training_part(tmp_path):
    rows = "train,b a b,1\ntrain,b a,0\nTest,new b,1\n test ,b,negative\n"
    content = "split,text,label\n" + rows
    (x_train, _), (x_test, y_test), words, _ = read(tmp_path / "own.csv", content)
    assert words == ["b", "a"]
    assert sorted(map(list, x_train)) == [[2, 3, 4], [2, 3, 4, 3]]
    assert sorted(map(list, x_test)) == [[2, 1, 3], [2, 3]]
    assert [len(x) == 3 for x in x_test] == list(y_test == 1)
    *_, words, _ = read(tmp_path / "own.csv", content, num_distinct_words=4)
    assert words == ["b"]


@pytest.mark.parametrize(
    "content",
    [
        "review,sentiment\n{good},positive\n{bad},negative\n",
        "Sentiment,Review\nPositive,{good}\nNegative,{bad}\n",
        "text;label\n{good};1\n{bad};0\n",
        '"review";"sentiment";"stars, of 5"\n{good};True;5\n{bad};False;1\n',
        "label\ttext\npos\t{good}\nneg\t{bad}\n",
        ",review,sentiment\n0,{good},1\n1,{bad},0\n",
        "\ufeffid;Review ;split;Sentiment\r\n0;{good};train;1\r\n1;{bad};train;0\r\n",
        # The columns' own names win.
        "text,review,label,sentiment\n{good},{bad},1,0\n{bad},{good},0,1\n",
        "sentiment,review,label,text\n0,{bad},1,{good}\n1,{good},0,{bad}\n",
    ],
    ids=range(9),
)
def test_csv_as_people_have_it(tmp_path, content):
    head, *rows = content.splitlines(keepends=True)
    rows = "".join(rows).format(good='"good, well; ""fine"""', bad='"bad, ill"')
    if "split" in head:
        rows += rows.replace("train", "test")
    (x_train, y_train), _, words, _ = read(tmp_path / "own.csv", head + rows * 9)
    assert set(y_train) == {0, 1}
    for review, label in zip(x_train, y_train):
        text = [words[token - 3] for token in review[1:]]
        assert text == (["good", "well", "fine"] if label else ["bad", "ill"])


def test_quotes_are_letters_where_tabs_separate(tmp_path):
    rows = '1\t"Great" film, "so\n0\tbad film\n1\tgreat film" so\n' * 9
    parts = read(tmp_path / "own.csv", "label\ttext\n" + rows)
    (x_train, y_train), (x_test, _), words, _ = parts
    assert len(x_train) + len(x_test) == 27
    for review, label in zip(x_train, y_train):
        text = " ".join(words[token - 3] for token in review[1:])
        assert text == ("great film so" if label else "bad film")


LABELS = {"pos": 1, "neg": 0, "True": 1, "False": 0, "1.0": 1, "0.0": 0}
LABELS |= {"Positive": 1, "NEGATIVE": 0, "1": 1, "0": 0}


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title, " {} ".format])
def test_labels_of_all_kinds(change, tmp_path):
    rows = "".join(f"of{label},{change(name)}\n" for name, label in LABELS.items())
    train, test, words, _ = read(tmp_path / "own.csv", "text,label\n" + rows * 5)
    for x, y in (train, test):
        assert [words[review[1] - 3] for review in x] == [f"of{label}" for label in y]


def test_csv_holds_out_by_the_seed(tmp_path):
    rows = "".join(f"word{i},{i % 2}\n" for i in range(50))
    path, content = tmp_path / "own.csv", "text,label\n" + rows
    one, same, other = (read(path, content, seed=seed)[2] for seed in (1, 1, 2))
    assert one == same and set(one) != set(other)


def test_csv_without_a_word(tmp_path):
    rows = ",1\n...,0\n" * 25
    (x, _), _, words, _ = read(tmp_path / "own.csv", "text,label\n" + rows)
    assert words == []
    chooser = lstm.token_chooser([], tiny(max_sequence_length=2))
    tokens = lstm.prepare(x, chooser)  # here all reviews are of one length
    assert set(map(tuple, tokens)) == {(0, 2)}


def zipped(content):
    """A zip file that holds a file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sheet.xml", content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no CSV file in UTF-8"),
        (b"text,label\n", "no CSV file in UTF-8"),
        (b"text,stars\na,1\n", "label"),
        (b"text,stars\na,1\n", "stars"),
        (b"name;rating\na;1\n", "text"),
        (b"text,label\na,1\nb,2\n", "line 3: "),
        (b"text,label\na,1\nb,2\n", "'2'"),
        (b"text,label\na,5 stars\n", "line 2: "),
        (b"text,label\na,1\nb,0\nc,-1\n", "'-1'"),  # 0 may be a third class
        (b"text,label\n\n\na,1\n\nb,7\n", "line 6: "),
        (b'text,label\n\n"a\n\nb",7\n', "line 5: "),
        (b'text,label\n"a\n\nb",1\n\nc,7\n', "line 6: "),
        (b'text,label\na,1\n\n"b,0\nc,1\nd,0\n', "no CSV file in UTF-8"),
        (b'text,label\na,1\n"b" c,0\n', "no CSV file in UTF-8"),
        (b'text,label\n"a,1\n', "no CSV file in UTF-8"),
        (b'text,label\n"a\n\nb",1\nb\n', "line 5: "),
        (b"text,label\na,1\nb,1,x\n", "line 3: "),
        (b"label,text\n1,a\n0\n", "line 3: "),
        (b"text,label\na,1\nb,1\n", "need both labels"),
        (b"text,label,split\na,1,train\nb,0,train\na,1,test\n", "need both labels"),
        (b"text,label\nna\xefve,1\n", "no CSV file in UTF-8"),
        ("text,label\na,1\n".encode("utf-16"), "no CSV file in UTF-8"),
        (gzip.compress(b"text,label\na,1\n", mtime=0), "no CSV file in UTF-8"),
        (zipped(b"text,label\na,1\n"), "no CSV file in UTF-8"),  # as .xlsx is
    ],
)
def test_bad_csv_is_refused(tmp_path, content, words):
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    with pytest.raises(lstm.UserError) as refused:
        lstm.main(tiny(data=path, model_path=tmp_path / "lstm.keras"))
    name, _, message = str(refused.value).partition(str(path))
    assert name == "data: " and words in message and "\n" not in message


def test_csv_that_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises((OSError, lstm.UserError), match=str(path)):
            lstm.main(tiny(data=path, model_path=tmp_path / "lstm.keras"))


TEXTS_TO_DRAW = [
    "word1",
    "",
    " ".join(WORDS * 4),
    "one $x_1$ $\\bad$ two_three 100% a$b \0 \ud800",
    "日本 😀",
    "https://example.org/" + "x" * 60,
]


@pytest.fixture
def pyplot(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    yield pyplot
    pyplot.close("all")


@pytest.mark.parametrize("text", TEXTS_TO_DRAW, ids=range(len(TEXTS_TO_DRAW)))
@pytest.mark.filterwarnings(
    "error::UserWarning", "ignore:Glyph"
)  # a font that lacks a letter
def test_picture_of_what_is_read(text, classify, pyplot, tmp_path, capfd):
    picture = tmp_path / "reading.png"
    classify([text, "word1"], plot=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    output, errors = capfd.readouterr()
    assert len(output.splitlines()) == 2 and errors == ""


def test_picture_shows_the_large_changes(pyplot, monkeypatch, text_model, tmp_path):
    curve = np.array([0.5, 0.98, 0.02, 0.03, 0.5, 0.01, 0.99, 0.99, 0.4])
    monkeypatch.setattr(lstm, "predict", lambda texts, model: curve[: len(texts)])
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    text = "good bad so so word1 word2 word3 word4"
    lstm.plot_reading(text, text_model, tmp_path / "reading.png")
    figure = pyplot.gcf()
    (axis,) = figure.axes
    ticks = axis.get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["", *text.split()]
    grey = [tick.get_color() for tick in ticks].count("darkgrey")
    assert grey == 4  # "good bad so so" are unknown
    changes = {label.get_text(): label for label in axis.texts}
    assert [*changes] == ["+0.48", "-0.96", "+0.47", "-0.49", "+0.98", "-0.59"]
    colors = {text[0]: label.get_color() for text, label in changes.items()}
    assert colors["+"] != colors["-"]
    line = axis.lines[0].get_transform().transform(np.c_[range(9), curve])
    for label in axis.texts:  # no label is struck through by the curve
        box = label.get_window_extent()
        above = line[:, 1].max() <= box.y0
        assert above == label.get_text().startswith("+")
        assert above or box.y1 <= line[:, 1].min()


def test_picture_of_the_first_text_alone(classify, pyplot, monkeypatch, tmp_path):
    drawn, draw = [], lstm.plot_reading
    monkeypatch.setattr(lstm, "plot_reading", lambda *a: drawn.append(a[0]) or draw(*a))
    monkeypatch.setattr("sys.stdin", piped(b"word1\nword2\n", b"word3\n"))
    for texts in (["-"], ["word1", "word2"]):
        classify(texts, plot=tmp_path / "reading.png")
    assert drawn == ["word1", "word1"]

"""What comes after training: the kept model, texts, predictions, one's own reviews."""

import io
import json
import os
import re
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import SAMPLE, WORDS, random_model, tiny

import lstm

TEXTS = ["word1 word7", "word3 " * 30, "", "word150 word9 word2", "word20 word4 word5"]


@pytest.fixture(scope="module")
def words_model():
    """A model that takes words, with random weights."""
    return random_model("tuned")[1]


@pytest.fixture(scope="module")
def kept(words_model, tmp_path_factory):
    """The path where it is kept."""
    path = str(tmp_path_factory.mktemp("kept") / "lstm.keras")
    words_model.save(path)
    return path


@pytest.mark.parametrize("preset", lstm.PRESETS)
def test_text_gives_what_its_ids_give(preset, tmp_path):
    model, words_model, config = random_model(preset)
    vocabulary, how = lstm.reads_as(words_model)
    for name in ("rarest", "masked", "max_sequence_length"):
        assert getattr(how, name) == getattr(config, name)
    rng = np.random.default_rng(1)
    ranks = [list(map(int, rng.integers(1, 150, n))) for n in (0, 1, 19, 20, 21, 70)]
    ranks[-1][-3:] = 6, 7, 1  # a bigram, where there are bigrams
    texts = [" ".join(WORDS[rank - 1] for rank in review) for review in ranks]
    reviews = [[2, *(r + 3 if r < 97 else 1 for r in review)] for review in ranks]
    tokens = lstm.prepare(reviews, vocabulary, config)
    assert (tokens.max() > 99) == (preset == "large")
    expected = model.predict(tokens, verbose=0)[:, 0]
    path = str(tmp_path / "kept.keras")
    words_model.save(path)
    for used in (words_model, lstm.load(path)):
        probabilities = lstm.predict(texts, used)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
        assert lstm.predict([], used).shape == (0,)
        (one,) = lstm.predict(texts[-1], used)
        assert one == pytest.approx(expected[-1], rel=1e-5)


@pytest.mark.parametrize("preset", ["tuned", "large"])
def test_a_gpu_that_leaves_zeros_over_the_padding(preset, monkeypatch, tmp_path):
    _, model, _ = random_model(preset)
    expected = lstm.predict(TEXTS, model)
    keras_loop = keras.layers.LSTM.inner_loop
    used = []

    def as_cudnn(self, sequences, initial_state, mask, training=False):
        used.append(self)
        last, states, final = keras_loop(self, sequences, initial_state, mask, training)
        return last, tf.where(mask[:, :, None], states, 0.0), final

    monkeypatch.setattr(lstm, "use_fast_loop", lambda model: None)
    monkeypatch.setattr(keras.layers.LSTM, "inner_loop", as_cudnn)
    _, there, _ = random_model(preset)
    path = str(tmp_path / "kept.keras")
    there.save(path)
    for model in (there, lstm.load(path)):
        np.testing.assert_allclose(lstm.predict(TEXTS, model), expected, rtol=1e-5)
        assert used.pop()


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu", "recurrent_activation": "hard_sigmoid", "units": 7},
        {"use_bias": False},
        {"unit_forget_bias": False, "recurrent_dropout": 0.3, "dropout": 0.2},
        {"unroll": True},
        {"go_backwards": True},
        {"zero_output_for_mask": True},
        {
            "kernel_initializer": "he_normal",
            "recurrent_initializer": "glorot_uniform",
            "bias_initializer": "ones",
            "kernel_regularizer": "l2",
            "recurrent_regularizer": "l1",
            "bias_regularizer": "l2",
            "activity_regularizer": "l2",
            "kernel_constraint": "max_norm",
            "recurrent_constraint": "unit_norm",
            "bias_constraint": "non_neg",
        },
    ],
    ids=lambda options: "-".join(options),
)
def test_kept_model_gives_what_the_trained_one_gives(options, tmp_path):
    pooling = "last" if "go_backwards" in options else "concat"
    fields = {"pooling": pooling, "lstm_options": options}
    model, words_model, config = random_model(masked=True, **fields)
    path = str(tmp_path / "kept.keras")
    words_model.save(path)
    ids = [[2, *(int(word[4:]) + 3 for word in text.split())] for text in TEXTS]
    ids = [[token if token < 100 else 1 for token in review] for review in ids]
    tokens = lstm.prepare(ids, {}, config)
    expected = model.predict(tokens, verbose=0)[:, 0]
    np.testing.assert_allclose(
        lstm.predict(TEXTS, lstm.load(path)), expected, rtol=1e-5
    )


def test_trained_model_is_a_model_of_keras(trained, tmp_path):
    model, _, _, lines, kept = trained
    path = str(tmp_path / "mine.keras")
    model.save(path)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    expected = lstm.predict(TEXTS, model)
    assert isinstance(model, keras.Model)
    for other in (
        keras.saving.load_model(path),
        lstm.load(path),
        lstm.load(kept),
        clone,
    ):
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
def test_words_are_split_as_imdbs(text, plain):
    assert lstm.split_words(text) == plain.split()


def test_letters_in_either_form_are_one_word():
    composed, decomposed = "caf\u00e9 na\u00efve", "cafe\u0301 nai\u0308ve"
    assert lstm.split_words(composed) == lstm.split_words(decomposed)
    assert len(lstm.split_words(decomposed)) == 2
    vocabulary = {"caf\u00e9": 4}
    for text in (composed, decomposed):
        assert list(lstm.encode(text, vocabulary)) == [2, 4, 1]


@pytest.mark.parametrize("wrong", [float("nan"), None, b"word1", 3, ["word1"]], ids=str)
def test_what_is_no_text_is_named(wrong, words_model):
    for texts in (["word1", wrong], ("word1", wrong)):
        with pytest.raises(lstm.UserError, match=r"\A.*item 1\b.*\Z"):
            lstm.predict(texts, words_model)
    if wrong != ["word1"]:
        with pytest.raises(lstm.UserError, match=r"\A.*item 0\b.*\Z"):
            lstm.predict(wrong, words_model)


def test_cells_of_pandas_are_texts(words_model):
    pandas = pytest.importorskip("pandas")
    model, texts = words_model, TEXTS[:3]
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
        with pytest.raises(lstm.UserError, match="item 1"):
            lstm.predict(pandas.Series(["word1", gap]), model)
    assert lstm.predict(pandas.Series([], dtype=object), model).shape == (0,)


def test_many_texts_are_read_in_parts(words_model, monkeypatch):
    rng, sizes, prepare = np.random.default_rng(0), [], lstm.prepare
    texts = [" ".join(rng.choice(WORDS, n % 5)) for n in range(3000)]

    def spy(reviews, *arguments):
        sizes.append(len(reviews))
        return prepare(reviews, *arguments)

    monkeypatch.setattr(lstm, "prepare", spy)
    results = lstm.predict(texts, words_model)
    assert results.shape == (3000,) and max(sizes) <= 1000
    for n in (0, 1, 999, 1000, 1001, 1999, 2000, 2999):
        (alone,) = lstm.predict(texts[n], words_model)
        assert results[n] == pytest.approx(alone, rel=1e-5)


def test_name_of_a_file_is_told_from_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my reviews.csv").write_text("text,label\n")
    for texts in (["my reviews.csv"], ["word1", "my reviews.csv"]):
        with pytest.raises(lstm.UserError, match=r"\A.* is a file.*\Z") as refused:
            lstm.classify(texts, tiny())
        assert "--predict - < 'my reviews.csv'" in str(refused.value)


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
            ["caf\u00e9     a", "\ufffd"],
        ),
        ([], []),
        (None, ["-"]),
    ],
    ids=str,
)
def test_lines_of_standard_input(parts, starts, kept, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None if parts is None else piped(*parts))
    lstm.classify(["-"], tiny(model_path=kept))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" - ")[0] for line in lines] == starts


def test_lines_are_answered_as_they_arrive(kept, monkeypatch, capsys):
    stdin = piped(b"word1\n", b"word2\nword3\n", b"word4\n")
    monkeypatch.setattr("sys.stdin", stdin)
    seen, predict = [], lstm.predict

    def spy(texts, model):
        seen.append((stdin.buffer.raw.asked, texts))
        return predict(texts, model)

    monkeypatch.setattr(lstm, "predict", spy)
    lstm.classify(["-"], tiny(model_path=kept))
    assert seen == [(1, ["word1"]), (2, ["word2", "word3"]), (3, ["word4"])]


def test_no_text_gives_no_line_and_no_picture(kept, monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("sys.stdin", piped())
    picture = tmp_path / "reading.png"
    lstm.classify(["-"], tiny(model_path=kept, plot=str(picture)))
    assert capsys.readouterr().out == "" and not picture.exists()


def test_strange_texts_are_judged(words_model):
    texts = ["\ud800 \udfff", "\0", "a\0b" * 400, "😀", "\u2028", "big " * 100_000]
    probabilities = lstm.predict(texts, words_model)
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
    with pytest.raises(lstm.UserError, match="cannot be loaded.*unsafe|ambda"):
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
    for word in (path, "3.99.0", keras.__version__, "upgrade Keras", "LaterModel"):
        assert word in str(refused.value)
    expected = lstm.predict(TEXTS, lstm.load(path := damaged("3.99.0")))
    assert np.isfinite(expected).all()  # what can be read is read


def test_reason_of_keras_is_shown(damaged):
    path = damaged(keras.__version__, class_name="LaterModel")
    with pytest.raises(lstm.UserError, match="LaterModel") as refused:
        lstm.load(path)
    assert "upgrade" not in str(refused.value)


@pytest.mark.parametrize("fails", ["save", "replace"])
def test_full_disk_leaves_the_old_model(fails, tmp_path, monkeypatch, capsys):
    path = tmp_path / "kept.keras"
    path.write_bytes(b"the old one")
    save = keras.Model.save

    def half_a_save(self, target, **options):
        save(self, target, **options)
        raise OSError(28, "No space left on device")

    def replace(*_):
        raise OSError(28, "No space left on device")

    if fails == "save":
        monkeypatch.setattr(keras.Model, "save", half_a_save)
    else:
        monkeypatch.setattr(os, "replace", replace)
    model, history, test_results = lstm.main(tiny(model_path=str(path)))
    assert lstm.predict("word1", model).shape == (1,)  # a notebook has it still
    assert len(history.history["loss"]) == 1 and test_results["loss"] > 0
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
    assert capsys.readouterr().out.splitlines()[-1].startswith("lstm.py: [Errno 28] ")


@pytest.mark.parametrize("name", ["c.xyz", "no/folder/c.png", "own.csv"])
def test_picture_that_cannot_be_drawn(name, kept, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.csv").write_text("mine")
    with pytest.raises(lstm.UserError, match=r"\Aplot: .*\.png.*\Z"):
        lstm.classify(["word1"], tiny(model_path=kept, plot=name))
    assert capsys.readouterr().out.startswith("word1 - ")  # nothing is lost
    assert (tmp_path / "own.csv").read_text() == "mine"


def test_picture_without_matplotlib(kept, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(lstm.UserError, match=r"\Aplot: .*matplotlib.*\Z"):
        lstm.classify(["word1"], tiny(model_path=kept, plot="reading.png"))


def read(path, content, **fields):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return lstm.read_csv(tiny(data=str(path), **fields))


def test_csv(tmp_path):
    rows = 'good good film,Positive\r\n"bad, bad\nfilm",0\r\n\r\n' * 10
    parts = read(tmp_path / "own.csv", "\ufeffText,LABEL\r\n" + rows)
    (x_train, y_train), (x_test, y_test), words = parts
    assert x_train.shape == (16,) and x_test.shape == (4,)
    assert sorted(y_test) == [0, 0, 1, 1]
    assert sorted([*words][4:]) == ["bad", "film", "good"]
    for x, y in ((x_train, y_train), (x_test, y_test)):
        for review, label in zip(x, y):
            assert review[0] == 2
            text = " ".join([*words][token] for token in review[1:])
            assert text == ("good good film" if label else "bad bad film")


def test_csv_split_and_vocabulary_of_the_training_part(tmp_path):
    rows = "train,b a b,1\ntrain,b a,0\nTest,new b,1\n test ,b,negative\n"
    content = "split,text,label\n" + rows
    (x_train, _), (x_test, y_test), words = read(tmp_path / "own.csv", content)
    assert [*words] == [*lstm.SPECIAL, "b", "a"] and words["b"] == 4
    assert sorted(map(list, x_train)) == [[2, 4, 5], [2, 4, 5, 4]]
    assert sorted(map(list, x_test)) == [[2, 1, 4], [2, 4]]
    assert [len(x) == 3 for x in x_test] == list(y_test == 1)
    *_, words = read(tmp_path / "own.csv", content, num_distinct_words=5)
    assert [*words] == [*lstm.SPECIAL, "b"]


@pytest.mark.parametrize(
    "content",
    [
        "review,sentiment\n{good},positive\n{bad},negative\n",
        "Sentiment,Review\nPositive,{good}\nNegative,{bad}\n",
        "text;label\n{good};1\n{bad};0\n",
        '"review";"sentiment";"stars, of 5"\n{good};True;5\n{bad};False;1\n',
        "label\ttext\npos\t{good}\nneg\t{bad}\n",
        ",review,sentiment\n0,{good},1\n1,{bad},0\n",
        "\ufeffid;Review ;split;Sentiment\r\n0;{good};train;yes\r\n1;{bad};train;no\r\n",
    ],
    ids=range(7),
)
def test_csv_as_people_have_it(tmp_path, content):
    head, *rows = content.splitlines(keepends=True)
    rows = "".join(rows).format(good='"good, well; ""fine"""', bad='"bad, ill"')
    if "split" in head:
        rows += rows.replace("train", "test")
    (x_train, y_train), _, words = read(tmp_path / "own.csv", head + rows * 5)
    for review, label in zip(x_train, y_train):
        text = [[*words][token] for token in review[1:]]
        assert text == (["good", "well", "fine"] if label else ["bad", "ill"])


LABELS = {"pos": 1, "neg": 0, "True": 1, "False": 0, "1.0": 1, "0.0": 0}
LABELS |= {"Positive": 1, "NEGATIVE": 0, "yes": 1, "no": 0, "good": 1, "bad": 0}
LABELS |= {"1": 1, "0": 0}


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title, " {} ".format])
def test_labels_of_all_kinds(change, tmp_path):
    rows = "".join(f"of{label},{change(name)}\n" for name, label in LABELS.items())
    parts = read(tmp_path / "own.csv", "text,label\n" + rows)
    for x, y in parts[:2]:
        assert [[*parts[2]][review[1]] for review in x] == [f"of{label}" for label in y]


def test_csv_with_a_very_long_text(tmp_path):
    rows = "".join(f'"{"good " * 40_000}",{n % 2}\n' for n in range(10))
    (x_train, _), _, _ = read(tmp_path / "own.csv", "text,label\n" + rows)
    assert len(x_train[0]) == 40_001


def test_csv_holds_out_by_the_seed(tmp_path):
    rows = "".join(f"word{i},{i % 2}\n" for i in range(50))
    path, content = tmp_path / "own.csv", "text,label\n" + rows
    one, same, other = (read(path, content, seed=seed)[2] for seed in (1, 1, 2))
    assert one == same and set(one) != set(other)


def test_csv_without_a_word(tmp_path):
    (x, _), _, words = read(tmp_path / "own.csv", "text,label\n" + ",1\n...,0\n" * 10)
    assert [*words] == [*lstm.SPECIAL]
    config = tiny(max_sequence_length=2)
    assert set(map(tuple, lstm.prepare(x, words, config))) == {(0, 2)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "columns text and label"),
        (b"text,stars\na,1\n", "columns text and label"),
        (b"text,stars\na,1\n", "stars"),
        (b"\nname;rating\na;1\n", "columns text and label"),
        (b"text,label\na,1\nb,2\n", "line 3: "),
        (b"text,label\na,1\nb,2\n", "'2'"),
        (b"text,label\na,1\nb,2\n", "class"),
        (b"text,label\na,1\nb,2\n", "positive"),
        (b"text,label\na,5 stars\n", "line 2: "),
        (b"text,label\na,1\nb,0\nc,-1\n", "'-1'"),  # 0 may be a third class
        (b"text,label\n\n\na,1\n\nb,7\n", "line 6: "),
        (b'text,label\n\n"a\n\nb",7\n', "line 5: "),
        (b'text,label\n"a\n\nb",1\n\nc,7\n', "line 6: "),
        (b'text,label\na,1\n\n"b,0\nc,1\nd,0\n', "line 4: "),
        (b'text,label\na,1\n"b" c,0\n', "line 3: "),
        (b"text,label\nna\xefve,1\n", "save it as UTF-8"),
        (b'text,label\n"a\n\nb",1\nb\n', "line 5: "),
        (b"text,label\na,1\nb,1,x\n", "line 3: "),
        (b"label,text\n1,a\n0\n", "line 3: "),
        (b"text,label,split\na,1\n", "line 2: "),
        (b"text,label\n\xff\xfe,1\n", "utf-8"),
        (b'text,label\n"a,1\n', ""),
        (b"text,label\na,1\nb,1\n", "both labels"),
        (b"text,label,split\na,1,train\nb,0,train\na,1,test\n", "both labels"),
        (None, "No such file"),
    ],
)
def test_bad_csv_is_refused(tmp_path, content, words):
    path = tmp_path / "own.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(lstm.UserError) as refused:
        lstm.main(tiny(data=str(path), model_path=str(tmp_path / "lstm.keras")))
    assert str(refused.value).startswith(f"data: {path}: ")
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_csv_of_the_sample_is_learnt(tmp_path):
    fields = {"number_of_epochs": 12, "batch_size": 16}
    fields |= {"data": SAMPLE, "model_path": str(tmp_path / "own.keras")}
    model, *_ = lstm.main(tiny(**fields))
    texts = ["I loved every minute", "I fell asleep twice"]
    good, bad = lstm.predict(texts, model)
    assert good > 0.5 > bad
    assert {path.name for path in tmp_path.iterdir()} == {"own.keras"}


TEXTS_TO_DRAW = [
    ["word1"],
    [""],
    [" ".join(WORDS * 4)],
    ["word1 word2 qqqq"] * 6,
    ["one $x_1$ $\\bad$ two_three 100%", "a$b", "\0"],
    ["\ud800"],
    ["日本 😀"],
]


@pytest.mark.parametrize("texts", TEXTS_TO_DRAW, ids=range(len(TEXTS_TO_DRAW)))
@pytest.mark.filterwarnings("ignore:Glyph")  # of a font that lacks a letter
def test_picture_of_what_is_read(texts, kept, tmp_path, capfd):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "reading.png"
    lstm.classify(texts, tiny(model_path=kept, plot=str(picture)))
    assert picture.read_bytes().startswith(b"\x89PNG")
    output, errors = capfd.readouterr()
    assert len(output.splitlines()) == len(texts) and errors == ""


def test_picture_of_a_data_frame(words_model, monkeypatch, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    seen = []

    def predict(texts, _):
        seen.append(texts[-1])
        return np.zeros(len(texts))

    monkeypatch.setattr(lstm, "predict", predict)
    frame = pandas.DataFrame({"review": ["good film", "bad film"]})
    lstm.plot_reading(frame, words_model, tmp_path / "reading.png")
    assert [text.strip() for text in seen] == ["good film", "bad film"]


@pytest.mark.parametrize("in_notebook", [False, True])
def test_many_pictures_give_no_warning(in_notebook, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("IPython")
    monkeypatch.setattr(lstm, "IN_NOTEBOOK", in_notebook)
    monkeypatch.setenv("MPLBACKEND", "agg")
    _, model, _ = random_model()
    monkeypatch.setattr(lstm, "predict", lambda texts, _: np.zeros(len(texts)))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(25):
            lstm.plot_reading("word1", model)
    assert not [w for w in warned if "figures" in str(w.message)]


def test_no_more_than_six_texts_are_drawn(kept, monkeypatch, tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figure.Figure.savefig

    def savefig(self, *arguments, **options):
        drawn.extend([len(self.axes)] if self.axes else [])
        save(self, *arguments, **options)

    monkeypatch.setattr(figure.Figure, "savefig", savefig)
    lines = "\n".join(WORDS[:9]).encode()
    monkeypatch.setattr("sys.stdin", piped(lines))
    for texts in (["-"], ["a"] * 7, ["a"] * 2):
        picture = str(tmp_path / "reading.png")
        lstm.classify(texts, tiny(model_path=kept, plot=picture))
    assert drawn == [6, 6, 2]

"""What comes after training: the kept model, texts, predictions, one's own reviews."""

import io
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import SAMPLE, WORDS, random_model, tiny

import lstm

TEXTS = ["word1 word7", "word3 " * 30, "", "word150 word9 word2", "word20 word4 word5"]


@pytest.mark.parametrize("preset", lstm.PRESETS)
def test_text_gives_what_its_ids_give(preset, tmp_path):
    model, config = random_model(preset)
    rng = np.random.default_rng(1)
    ranks = [list(map(int, rng.integers(1, 150, n))) for n in (0, 1, 19, 20, 21, 70)]
    ranks[-1][-3:] = 6, 7, 1  # a bigram, where there are bigrams
    texts = [" ".join(WORDS[rank - 1] for rank in review) for review in ranks]
    reviews = [[1, *(r + 3 if r < 97 else 2 for r in review)] for review in ranks]
    tokens = lstm.prepare(reviews, model.vocabulary, config)
    assert (tokens.max() > 99) == (preset == "large")
    expected = model.predict(tokens, verbose=0)[:, 0]
    path = str(tmp_path / "kept.keras")
    lstm.kept_form(model).save(path)
    for used in (model, lstm.load(path)):
        probabilities = lstm.predict(texts, used)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
        assert lstm.predict([], used).shape == (0,)
        (one,) = lstm.predict(texts[-1], used)
        assert one == pytest.approx(expected[-1], rel=1e-5)


@pytest.mark.parametrize("preset", ["tuned", "large"])
def test_a_gpu_that_leaves_zeros_over_the_padding(preset, monkeypatch, tmp_path):
    model, _ = random_model(preset)
    expected = lstm.predict(TEXTS, model)
    keras_loop = keras.layers.LSTM.inner_loop
    used = []

    def as_cudnn(self, sequences, initial_state, mask, training=False):
        used.append(self)
        last, states, final = keras_loop(self, sequences, initial_state, mask, training)
        return last, tf.where(mask[:, :, None], states, 0.0), final

    monkeypatch.setattr(keras.layers.LSTM, "inner_loop", as_cudnn)
    monkeypatch.setattr(lstm.FastLSTM, "inner_loop", as_cudnn)
    there, _ = random_model(preset)
    path = str(tmp_path / "kept.keras")
    lstm.kept_form(there).save(path)
    for model in (there, lstm.load(path)):
        np.testing.assert_allclose(lstm.predict(TEXTS, model), expected, rtol=1e-5)
        assert used.pop()


@pytest.mark.parametrize("masked", [False, True])
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
def test_kept_model_gives_what_the_trained_one_gives(options, masked, tmp_path):
    pooling = "concat" if masked else "last"
    fields = {"masked": masked, "pooling": pooling, "lstm_options": options}
    model, config = random_model(**fields)
    path = str(tmp_path / "kept.keras")
    lstm.kept_form(model).save(path)
    ids = [[1, *(int(word[4:]) + 3 for word in text.split())] for text in TEXTS]
    ids = [[token if token < 100 else 2 for token in review] for review in ids]
    tokens = lstm.prepare(ids, model.vocabulary, config)
    expected = model.predict(tokens, verbose=0)[:, 0]
    np.testing.assert_allclose(
        lstm.predict(TEXTS, lstm.load(path)), expected, rtol=1e-5
    )


PLAIN = """
import json, sys
import keras, tensorflow as tf

paths, texts = json.loads(sys.argv[1])
for path in paths:
    model = keras.saving.load_model(path, safe_mode=True)
    print(json.dumps(model.predict(tf.constant(texts), verbose=0)[:, 0].tolist()))
assert "lstm" not in sys.modules
"""


def test_kept_model_needs_keras_alone(python, tmp_path):
    expected, paths = [], []
    for preset in lstm.PRESETS:
        model, _ = random_model(preset)
        paths.append(str(tmp_path / f"{preset}.keras"))
        lstm.kept_form(model).save(paths[-1])
        # Rows of 20 words without padding, which all presets read alike.
        texts = [
            ["[START]", *(f"word{i * k % 90 + 1}" for i in range(19))] for k in (2, 4)
        ]
        known = [" ".join(text[1:]) for text in texts]
        bigrams = [word for word in model.vocabulary if " " in word]
        assert not any(bigram in text for text in known for bigram in bigrams)
        expected.append(lstm.predict(known, model))
    process = python(
        "-W", "error::UserWarning", "-c", PLAIN, json.dumps([paths, texts])
    )
    given = [json.loads(line) for line in process.stdout.splitlines()]
    np.testing.assert_allclose(given, expected, rtol=1e-5)


def test_trained_model_is_a_model_of_keras(trained, tmp_path):
    model, _, _, lines = trained
    path = str(tmp_path / "mine.keras")
    model.save(path)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    tokens = lstm.prepare([[1, 5, 6], [1], [1] + [9] * 40], WORDS, model.config)
    expected = model.predict(tokens, verbose=0)
    assert isinstance(model, keras.Sequential)
    for other in (keras.saving.load_model(path), clone):
        np.testing.assert_allclose(
            other.predict(tokens, verbose=0), expected, rtol=1e-6
        )
    (kept,) = lstm.predict("word5 word6", lstm.load(model.config.model_path))
    assert kept == pytest.approx(lstm.predict(["word5 word6"], model)[0], rel=1e-5)
    assert lines[-1].startswith(f"Model kept in {model.config.model_path} - try: ")


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


def test_words_of_the_vocabulary_stay_whole():
    known = {"\x91good", "l’amour", "10–10"}
    assert lstm.split_words("\x91Good film, L’amour 10–10", known) == [
        "\x91good",
        "film",
        "l’amour",
        "10–10",
    ]
    assert lstm.split_words("\x91Good L’amour") == ["good", "l'amour"]


def test_strange_texts_are_judged(trained):
    texts = ["\ud800 \udfff", "\0", "a\0b" * 400, "😀", "\u2028", "big " * 100_000]
    probabilities = lstm.predict(texts, trained[0])
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
    with pytest.raises(lstm.UserError, match="is no model"):
        lstm.load(path)
    assert not marker.exists()


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


def test_model_is_kept_before_the_picture_is_drawn(tmp_path, monkeypatch, capsys):
    figure = pytest.importorskip("matplotlib.figure")
    path, picture = tmp_path / "kept.keras", tmp_path / "curves.png"

    def full(*_, **__):
        assert path.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure.Figure, "savefig", full)
    model, *_ = lstm.main(tiny(model_path=str(path), plot=str(picture)))
    assert "[Errno 28]" in capsys.readouterr().out.splitlines()[-1]
    np.testing.assert_allclose(
        lstm.predict(TEXTS, lstm.load(str(path))), lstm.predict(TEXTS, model), rtol=1e-5
    )


def read(path, content, **fields):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return lstm.read_csv(tiny(data=str(path), **fields))


def test_csv(tmp_path):
    rows = 'good good film,Positive\r\n"bad, bad\nfilm",0\r\n\r\n' * 10
    parts = read(tmp_path / "own.csv", "\ufeffText,LABEL\r\n" + rows)
    (x_train, y_train), (x_test, y_test), words = parts
    assert x_train.shape == (16,) and x_test.shape == (4,)
    assert sorted(y_test) == [0, 0, 1, 1]
    assert sorted(words) == ["bad", "film", "good"]
    for x, y in ((x_train, y_train), (x_test, y_test)):
        for review, label in zip(x, y):
            assert review[0] == 1
            text = " ".join([*words][token - 4] for token in review[1:])
            assert text == ("good good film" if label else "bad bad film")


def test_csv_split_and_vocabulary_of_the_training_part(tmp_path):
    rows = "train,b a b,1\ntrain,b a,0\nTest,new b,1\n test ,b,negative\n"
    content = "split,text,label\n" + rows
    (x_train, _), (x_test, y_test), words = read(tmp_path / "own.csv", content)
    assert words == {"b": 4, "a": 5}
    assert sorted(map(list, x_train)) == [[1, 4, 5], [1, 4, 5, 4]]
    assert sorted(map(list, x_test)) == [[1, 2, 4], [1, 4]]
    assert [len(x) == 3 for x in x_test] == list(y_test == 1)
    *_, words = read(tmp_path / "own.csv", content, num_distinct_words=5)
    assert words == {"b": 4}


def test_csv_holds_out_by_the_seed(tmp_path):
    rows = "".join(f"word{i},{i % 2}\n" for i in range(50))
    path, content = tmp_path / "own.csv", "text,label\n" + rows
    one, same, other = (read(path, content, seed=seed)[2] for seed in (1, 1, 2))
    assert one == same and set(one) != set(other)


def test_csv_without_a_word(tmp_path):
    (x, _), _, words = read(tmp_path / "own.csv", "text,label\n" + ",1\n...,0\n" * 10)
    assert words == {}
    config = tiny(max_sequence_length=2)
    assert set(map(tuple, lstm.prepare(x, words, config))) == {(0, 1)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "columns text and label"),
        (b"text,stars\na,1\n", "columns text and label"),
        (b"text,label\na,1\nb,2\n", "line 3: "),
        (b'text,label\n"a\n\nb",1\nb\n', "line 5: "),
        (b"text,label\na,1\nb,1,x\n", "line 3: "),
        (b"label,text\n1,a\n0\n", "line 3: "),
        (b"text,label,split\na,1,dev\n", "line 2: "),
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
    pytest.importorskip("matplotlib")
    picture = tmp_path / "curves.PNG"
    fields = {"number_of_epochs": 12, "batch_size": 16, "plot": str(picture)}
    fields |= {"data": SAMPLE, "model_path": str(tmp_path / "own.keras")}
    model, *_ = lstm.main(tiny(**fields))
    texts = ["I loved every minute", "I fell asleep twice"]
    good, bad = lstm.predict(texts, model)
    assert good > 0.5 > bad
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"curves.PNG", "own.keras"}


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
def test_picture_of_what_is_read(texts, trained, tmp_path, capfd, recwarn):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "reading.png"
    lstm.classify(
        texts, tiny(model_path=trained[0].config.model_path, plot=str(picture))
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    output, errors = capfd.readouterr()
    assert len(output.splitlines()) == len(texts) and errors == ""
    assert not [w for w in recwarn if w.filename == lstm.__file__]


def test_no_more_than_six_texts_are_drawn(trained, monkeypatch, tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figure.Figure.savefig

    def savefig(self, *arguments, **options):
        drawn.append(len(self.axes))
        save(self, *arguments, **options)

    monkeypatch.setattr(figure.Figure, "savefig", savefig)
    lines = "\n".join(WORDS[:9]).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    for texts in (["-"], ["a"] * 7, ["a"] * 2):
        picture = str(tmp_path / "reading.png")
        kept = trained[0].config.model_path
        lstm.classify(texts, tiny(model_path=kept, plot=picture))
    assert drawn == [6, 6, 2]

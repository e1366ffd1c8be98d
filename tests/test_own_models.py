"""The reader's own models: whatever `build_model` returns is trained, kept and used."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny

import lstm

LAYERS = keras.layers
TEXTS = ["word1 word7", "word3 " * 30, "word11 word12 word9", "word20 word4", ""]

# What stands between the Embedding and the end, by the name of the edit.
EDITS = {
    "stacked": lambda: [LAYERS.LSTM(6, return_sequences=True), LAYERS.LSTM(5)],
    "bidirectional": lambda: [LAYERS.Bidirectional(LAYERS.LSTM(6))],
    "stacked-bidirectional": lambda: [
        LAYERS.Bidirectional(LAYERS.LSTM(6, return_sequences=True)),
        LAYERS.Bidirectional(LAYERS.LSTM(5)),
    ],
    "gru": lambda: [LAYERS.GRU(6)],
    "dense": lambda: [
        LAYERS.LSTM(6),
        LAYERS.Dense(8, activation="relu"),
        LAYERS.Dropout(0.3),
    ],
    "average": lambda: [
        LAYERS.LSTM(6, return_sequences=True),
        LAYERS.GlobalAveragePooling1D(),
    ],
    "maximum": lambda: [
        LAYERS.LSTM(6, return_sequences=True),
        LAYERS.GlobalMaxPooling1D(),
    ],
    "concat": lambda: [
        LAYERS.Bidirectional(LAYERS.LSTM(6, return_sequences=True)),
        lstm.ConcatPooling(),
    ],
    "unit-normalization": lambda: [LAYERS.LSTM(6), LAYERS.UnitNormalization()],
    "batch-normalization": lambda: [LAYERS.LSTM(6), LAYERS.BatchNormalization()],
    "spatial-dropout": lambda: [LAYERS.SpatialDropout1D(0.2), LAYERS.LSTM(6)],
    "convolution": lambda: [
        LAYERS.Conv1D(8, 3, activation="relu"),
        LAYERS.MaxPooling1D(2),
        LAYERS.LSTM(6),
    ],
    "convolution-after": lambda: [
        LAYERS.LSTM(6, return_sequences=True),
        LAYERS.Conv1D(8, 3, activation="relu"),
        LAYERS.GlobalMaxPooling1D(),
    ],
    "flat": lambda: [LAYERS.LSTM(6, return_sequences=True), LAYERS.Flatten()],
    "backwards": lambda: [LAYERS.LSTM(6, go_backwards=True)],
    "unrolled": lambda: [LAYERS.LSTM(6, unroll=True)],
    "simple": lambda: [LAYERS.SimpleRNN(6)],
    "time-distributed": lambda: [
        LAYERS.TimeDistributed(LAYERS.Dense(5)),
        LAYERS.LSTM(6),
    ],
    "activation": lambda: [LAYERS.LSTM(6), LAYERS.Dense(1), LAYERS.Activation("tanh")],
}


def edited(name, mask_zero=None):
    """A `build_model` of the reader's own."""

    def build_model(config):
        mask = config.masked if mask_zero is None else mask_zero
        layers = [LAYERS.Embedding(config.num_distinct_words, 7, mask_zero=mask)]
        layers += [*EDITS[name](), LAYERS.Dense(1, activation="sigmoid")]
        return keras.Sequential(layers)  # without an Input, as in the article

    return build_model


@pytest.fixture(scope="module")
def trained_edit(tmp_path_factory):
    """Train an edited model on a small file; return what main returned, and a path."""

    def train(monkeypatch, name, preset, **given):
        path = str(tmp_path_factory.mktemp("own") / "own.keras")
        monkeypatch.setattr(lstm, "build_model", edited(name, **given))
        config = tiny(preset, model_path=path, pooling="last", number_of_epochs=1)
        return *lstm.main(config), path

    return train


BOTH = "stacked bidirectional stacked-bidirectional gru dense average concat flat"
CASES = [(name, "tuned") for name in EDITS]
CASES += [(name, "article") for name in [*BOTH.split(), "unit-normalization"]]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_edited_model_is_trained_and_kept(name, preset, trained_edit, monkeypatch):
    model, history, results, path = trained_edit(monkeypatch, name, preset)
    assert len(history.history["loss"]) == 1 and np.isfinite(results["loss"])
    expected = lstm.predict(TEXTS, model)
    assert np.ptp(expected[:4]) > 1e-6  # they differ from text to text
    for other in (lstm.load(path), keras.saving.load_model(path)):
        np.testing.assert_allclose(lstm.predict(TEXTS, other), expected, atol=1e-5)
    # The test reviews, as words: the kept model has the very weights of the trained.
    (_, _), (x, y), vocabulary = lstm.load_data(tiny())
    words = [*vocabulary]
    texts = [" ".join(words[t] for t in review if t > 3) for review in x]
    if preset == "tuned":  # it drops unknown words, the article's model reads them
        right = np.mean((lstm.predict(texts, model) > 0.5) == (y == 1))
        assert right == pytest.approx(results["accuracy"], abs=1e-6)


@pytest.mark.parametrize("name", ["stacked", "flat", "gru"])
def test_mask_zero_of_ones_own(name, trained_edit, monkeypatch):
    model, _, _, path = trained_edit(monkeypatch, name, "article", mask_zero=True)
    assert model.inputs[0].name.endswith("padding")  # the padding is behind the text
    expected = lstm.predict(TEXTS, model)
    kept = keras.saving.load_model(path)
    np.testing.assert_allclose(lstm.predict(TEXTS, kept), expected, atol=1e-5)


def test_copied_and_saved_models_answer_alike(trained_edit, monkeypatch, tmp_path):
    model, *_ = trained_edit(monkeypatch, "stacked", "article")
    path = str(tmp_path / "mine.keras")
    model.save(path)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    expected = lstm.predict(TEXTS, model)
    for other in (
        lstm.load(path),
        keras.saving.load_model(path),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        clone,
    ):
        np.testing.assert_allclose(lstm.predict(TEXTS, other), expected, rtol=1e-5)


class Unregistered(LAYERS.Layer):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("layers", "word"),
    [
        ([LAYERS.LSTM(3), LAYERS.Dense(2, activation="softmax")], "one probability"),
        ([LAYERS.LSTM(3), LAYERS.Dense(1)], "sigmoid"),
        ([LAYERS.LSTM(3, return_sequences=True), LAYERS.Dense(1)], "one probability"),
        ([LAYERS.LSTM(3), LAYERS.Lambda(lambda x: x[:, :1])], "ambda"),
        ([LAYERS.LSTM(1), Unregistered()], "Unregistered"),
    ],
    ids=str,
)
def test_model_that_cannot_work_is_refused_before_loading(layers, word, monkeypatch):
    monkeypatch.setattr(lstm, "load_data", None)
    layers = [keras.Input((20,)), LAYERS.Embedding(100, 4), *layers]
    monkeypatch.setattr(lstm, "build_model", lambda _: keras.Sequential(layers))
    with pytest.raises(lstm.UserError, match=rf"\Abuild_model: .*{word}.*\Z"):
        lstm.main(tiny())


def test_model_that_is_no_sequential_is_refused(monkeypatch):
    monkeypatch.setattr(lstm, "load_data", None)
    inputs = keras.Input((20,))
    for model in (None, keras.Model(inputs, LAYERS.Dense(1)(inputs))):
        monkeypatch.setattr(lstm, "build_model", lambda _, model=model: model)
        with pytest.raises(lstm.UserError, match=r"\Abuild_model: .*Sequential.*\Z"):
            lstm.main(tiny())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("option", "pooling"),
    [("go_backwards", "concat"), ("zero_output_for_mask", "last")],
)
def test_states_that_are_not_where_the_mask_is(option, pooling, masked, monkeypatch):
    config = tiny(masked=masked, pooling=pooling, lstm_options={option: True})
    monkeypatch.setattr(lstm, "load_data", lambda _: 1 / 0)
    kind = lstm.UserError if masked else ZeroDivisionError
    with pytest.raises(kind, match=option if masked else "zero"):
        lstm.main(config)


@pytest.mark.parametrize("end", ["softmax", "relu", "tanh", "linear", None])
def test_end_that_is_no_probability_is_refused(end, monkeypatch):
    monkeypatch.setattr(lstm, "load_data", None)
    build = lstm.build_model

    def build_model(config):
        model = build(config)
        model.pop()
        model.add(LAYERS.Dense(1, activation=end))
        return model

    monkeypatch.setattr(lstm, "build_model", build_model)
    with pytest.raises(lstm.UserError, match=r"\Abuild_model: .*sigmoid.*\Z"):
        lstm.main(tiny())


def test_mixed_precision(tmp_path):
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        path = str(tmp_path / "lstm.keras")
        model, history, _ = lstm.main(tiny("tuned", model_path=path))
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    assert 0 < history.history["loss"][0] < 0.75
    texts = ["word1 word2", "word30"]
    kept = lstm.predict(texts, lstm.load(path))
    np.testing.assert_allclose(kept, lstm.predict(texts, model), rtol=1e-2)


PLAIN = """
import json, sys
import keras, tensorflow as tf

for path in sys.argv[2:]:
    model = keras.saving.load_model(path)
    words = tf.constant(json.loads(sys.argv[1]))
    print(json.dumps(model.predict(words, verbose=0)[:, 0].tolist()))
assert "lstm" not in sys.modules
"""


def test_kept_models_need_keras_alone(trained_edit, monkeypatch, python):
    expected, paths = [], []
    words = [["[START]", *(f"word{i * k % 90 + 1}" for i in range(19))] for k in (2, 4)]
    for name in ("concat", "unit-normalization"):
        model, *_, path = trained_edit(monkeypatch, name, "tuned")
        expected.append(model.predict(tf.constant(words), verbose=0)[:, 0])
        paths.append(path)
    process = python("-c", PLAIN, json.dumps(words), *paths)
    given = [json.loads(line) for line in process.stdout.splitlines()]
    np.testing.assert_allclose(given, expected, rtol=1e-5)

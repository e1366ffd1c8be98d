"""The reader's own models: whatever `build_model` returns is trained, kept and used."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS, random_model, tiny

import lstm

LAYERS = keras.layers
ENDS = ["softmax", "relu", "tanh", "linear", None]
TEXTS = ["word1 word7", "word3 " * 30, "word11 word12 word9", "word20 word4", ""]

# What stands between the Embedding and the end, by the name of the edit.
EDITS = {
    "stacked": lambda: [LAYERS.LSTM(6, return_sequences=True), LAYERS.LSTM(5)],
    "gru": lambda: [LAYERS.GRU(6)],
    "dense": lambda: [
        LAYERS.LSTM(6, go_backwards=True),
        LAYERS.UnitNormalization(),
        LAYERS.Dense(8, activation="relu"),
        LAYERS.BatchNormalization(),
        LAYERS.Dropout(0.3),
        LAYERS.Activation("tanh"),
    ],
    "average": lambda: [
        LAYERS.SpatialDropout1D(0.2),
        LAYERS.LSTM(6, return_sequences=True),
        LAYERS.GlobalAveragePooling1D(),
    ],
    "concat": lambda: [
        LAYERS.Bidirectional(LAYERS.LSTM(6, return_sequences=True)),
        lstm.ConcatPooling(),
    ],
    "convolution": lambda: [
        LAYERS.Conv1D(8, 3, activation="relu"),
        LAYERS.MaxPooling1D(2),
        LAYERS.LSTM(6, return_sequences=True),
        LAYERS.GlobalMaxPooling1D(),
    ],
    "flat": lambda: [LAYERS.LSTM(6, return_sequences=True), LAYERS.Flatten()],
    "unrolled": lambda: [LAYERS.LSTM(6, unroll=True)],
    "time-distributed": lambda: [
        LAYERS.TimeDistributed(LAYERS.Dense(5)),
        LAYERS.LSTM(6),
    ],
}


def edited(name, mask_zero=None):
    """A `build_model` of the reader's own."""

    def build_model(config):
        mask = config.masked if mask_zero is None else mask_zero
        layers = [LAYERS.Embedding(config.num_distinct_words, 7, mask_zero=mask)]
        layers += [*EDITS[name](), LAYERS.Dense(1, activation="sigmoid")]
        return keras.Sequential(layers)  # without an Input, as in the article

    return build_model


FIXED = {"unrolled", "time-distributed"}  # Keras wants to know their number of steps
CASES = [(name, "tuned", {}) for name in sorted(EDITS.keys() - FIXED - {"stacked"})]
CASES += [(name, "article", {}) for name in sorted(FIXED)]
CASES += [("stacked", "article", {"mask_zero": True})]


@pytest.mark.parametrize(("name", "preset", "given"), CASES)
def test_edited_model_is_trained_and_kept(name, preset, given, monkeypatch, tmp_path):
    monkeypatch.setattr(lstm, "build_model", edited(name, **given))
    path = str(tmp_path / "own.keras")
    model, history, results = lstm.main(tiny(preset, pooling="last", model_path=path))
    assert len(history.history["loss"]) == 1 and np.isfinite(results["loss"])
    # The test reviews as texts: the kept model has the very weights of the trained.
    _, (x, y), vocabulary, _ = lstm.load_data(tiny())
    words = ["", "[UNK]", "[START]", *vocabulary]
    texts = [*TEXTS, *(" ".join(words[t] for t in review[1:]) for review in x)]
    expected = lstm.predict(texts, model)
    assert np.ptp(expected[:4]) > 1e-6  # they differ from text to text
    right = np.mean((expected[len(TEXTS) :] > 0.5) == (y == 1))
    assert right == pytest.approx(results["accuracy"], abs=1e-6)
    kept = keras.saving.load_model(path)
    given = kept(tf.constant([lstm.tidy(text) for text in texts]))[:, 0]
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_copied_and_saved_models_answer_alike(tmp_path):
    _, model, _ = random_model()
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


@pytest.mark.parametrize("option", ["go_backwards", "unroll", "zero_output_for_mask"])
def test_options_that_do_not_go_with_a_mask(option):
    # Of two of them every text would get one answer; unrolled, no batch is shorter.
    with pytest.raises(lstm.UserError, match=rf"\Alstm_options: {option} .*\Z"):
        tiny(masked=True, lstm_options={option: True})
    assert tiny(lstm_options={option: True}).lstm_options == {option: True}
    assert tiny(masked=True, lstm_options={option: False})


class Unregistered(LAYERS.Layer):
    activation = staticmethod(keras.activations.sigmoid)

    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("layers", "word"),
    [
        ([LAYERS.LSTM(3), LAYERS.Dense(2, activation="softmax")], "sigmoid"),
        ([LAYERS.LSTM(3), LAYERS.Dense(2, activation="sigmoid")], r"Dense\(1"),
        ([LAYERS.LSTM(3, return_sequences=True), LAYERS.Dense(1)], r"Dense\(1"),
        *(([LAYERS.LSTM(3), LAYERS.Dense(1, end)], "sigmoid") for end in ENDS),
        ([LAYERS.LSTM(1), Unregistered()], "Unregistered"),
        ([LAYERS.LSTM(3), LAYERS.Lambda(lambda x: x[:, :1])], "Lambda"),
    ],
)
def test_model_that_cannot_work_is_refused_before_loading(layers, word, monkeypatch):
    layers = [keras.Input((20,)), LAYERS.Embedding(100, 4), *layers]
    monkeypatch.setattr(lstm, "build_model", lambda _: keras.Sequential(layers))
    monkeypatch.setattr(lstm, "load_data", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(Exception, match=word) as refused:
        lstm.main(tiny())
    assert not isinstance(refused.value, lstm.UserError)  # it is the reader's to trace


def test_model_that_is_no_sequential_is_refused_before_training(monkeypatch):
    inputs = keras.Input((20,))
    end = LAYERS.Dense(1, activation="sigmoid")(inputs)
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained"))
    for model in (None, keras.Model(inputs, end)):
        monkeypatch.setattr(lstm, "build_model", lambda _, model=model: model)
        with pytest.raises((TypeError, ValueError, AttributeError)):
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


KERAS_ALONE = """
import json, sys
import keras, tensorflow as tf

texts, *paths = sys.argv[1:]
texts = tf.constant(json.loads(texts))
for path in paths:
    model = keras.saving.load_model(path)
    print(json.dumps(model.predict(texts, verbose=0)[:, 0].tolist()))
    model.export("served", verbose=False)
    served = tf.saved_model.load("served")
    print(json.dumps(served.serve(texts).numpy()[:, 0].tolist()))
assert "lstm" not in sys.modules
"""


def test_kept_and_exported_models_need_keras_alone(python, tmp_path):
    words = ["caf\u00e9", "na\u00efve", *WORDS]
    texts = ["Word1, word2!", "", "...", "zzz", "zzz word3 qqq", "word1 " * 3000]
    texts += ["caf\u00e9 na\u00efve", "Cafe\u0301 nai\u0308ve", " ".join(words)]
    tidied = json.dumps([lstm.tidy(text) for text in texts])
    expected, paths = [], []
    for preset in lstm.PRESETS:
        _, model, _ = random_model(preset, words=words)
        paths.append(str(tmp_path / f"{preset}.keras"))
        model.save(paths[-1])
        expected += [lstm.predict(texts, model)] * 2  # of Keras, and of the export
    process = python("-c", KERAS_ALONE, tidied, *paths)
    given = [json.loads(line) for line in process.stdout.splitlines()]
    np.testing.assert_allclose(given, expected, atol=1e-5)
    composed, decomposed = expected[0][6:8]
    assert composed == decomposed != expected[0][3]  # that of an unknown word

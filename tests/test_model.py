"""The parts, compared with Keras's own: data, batches, the LSTM, training."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS, tiny

import lstm


@pytest.mark.parametrize(("words", "length"), [(100, 20), (30, 3), (1000, 60), (4, 1)])
def test_load_and_pad_as_keras(words, length):
    config = tiny(num_distinct_words=words, max_sequence_length=length)
    *parts, vocabulary = lstm.load_data(config)
    assert [*vocabulary.items()] == [*zip(WORDS[: words - 4], range(4, words))]
    expected = keras.datasets.imdb.load_data(num_words=words)
    for (x, y), (keras_x, keras_y) in zip(parts, expected):
        x = lstm.prepare(x, vocabulary, config)
        keras_x = keras.utils.pad_sequences(keras_x, maxlen=length)
        np.testing.assert_array_equal(x, keras_x)
        np.testing.assert_array_equal(y, keras_y)
        assert (x.dtype, y.dtype) == ("int32", "int64")


def test_reviews_that_cannot_be_loaded(monkeypatch, tmp_path):
    damaged = tmp_path / "imdb.npz"
    damaged.write_bytes(b"no zip file")
    for path in ("", str(damaged)):
        monkeypatch.setenv("IMDB_STAND_IN", path)
        with pytest.raises(lstm.UserError, match=r"\AIMDB: .*~/.keras/datasets.*\Z"):
            lstm.load_data(tiny())
        assert gc.isenabled()


def test_bigrams_that_tell_most():
    words = {"a": 4, "b": 5, "c": 6, "d": 7}
    good, bad = [4, 5, 6, 4], [5, 4, 4, 6]  # "a b" and "c a" are good, "b a" is bad
    reviews = [good, bad, [*good, 7], [7, *bad], [7, 4, 2, 4, 4, 7], [7, 4, 4, 7]]
    reviews = np.array([[1, *review] for review in reviews], object)
    labels = np.array([1, 0, 1, 0, 1, 0])

    def chosen(most):
        return lstm.choose_bigrams(reviews, labels, words, tiny(num_bigrams=most))

    assert chosen(0) == {}
    assert sorted(chosen(4)) == ["a b", "a c", "b a", "b c"]
    assert sorted(chosen(4).values()) == [8, 9, 10, 11]
    every = {"a a", "a b", "a c", "a d", "b a", "b c", "c a", "c d", "d a", "d b"}
    assert set(chosen(99)) <= every and {"a a", "a d", "d a"} <= set(chosen(99))


def test_bigrams_are_tokens_behind_their_second_word():
    config = tiny(max_sequence_length=7, num_bigrams=2)
    vocabulary = {"a": 4, "b": 5, "c": 6, "d": 7, "a b": 8, "b a": 9}
    reviews = [[1, 4, 5, 4], [1, 5], [1, 4], [1, 2, 5, 4, 5, 2, 4]]
    assert lstm.prepare(reviews, vocabulary, config).tolist() == [
        [0, 1, 4, 5, 8, 4, 9],
        [0, 0, 0, 0, 0, 1, 5],
        [0, 0, 0, 0, 0, 1, 4],  # "b" of the review before is none of its neighbours
        [5, 4, 9, 5, 8, 2, 4],
    ]


def test_rarest_words_are_kept():
    config = tiny(max_sequence_length=4, masked=True, rarest=True)
    reviews = [[1, 4, 2, 5], [1, 4, 6, 5, 4, 5, 2], [1], [1, 2, 2, 2, 2, 4]]
    first, second, *others = lstm.prepare(reviews, WORDS[:5], config).tolist()
    assert first == [1, 4, 5, 0]
    assert second[-3:] == [5, 4, 5] or second[-3:] == [6, 5, 5] or second[-1] == 5
    assert sorted(second)[-3:] == [5, 5, 6]  # the frequent 4 went first
    assert others == [[1, 0, 0, 0], [1, 4, 0, 0]]


def some_reviews(count, length=30):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, length, count)
    words = rng.integers(4, 90, (count, length), "int32")
    return np.where(np.arange(length) < lengths[:, None], words, 0), lengths


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("count", "size"), [(100, 8), (7, 8), (1, 99), (64, 8)])
def test_batches_hold_every_review_once(masked, count, size):
    x, lengths = some_reviews(count)
    y, orders = np.arange(count), []
    data = lstm.batches(x, y, tiny(masked=masked, batch_size=size), training=True)
    assert int(data.cardinality()) == -(-count // size)
    for _ in range(2):
        epoch = list(data.as_numpy_iterator())
        sizes = [len(rows) for _, rows in epoch]
        assert len(sizes) == -(-count // size)
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
        for tokens, rows in epoch:
            longest = lengths[rows].max() if masked else 30
            assert tokens.shape == (len(rows), longest)
            assert not masked or np.ptp(lengths[rows]) < 15 or count < 10
            np.testing.assert_array_equal(tokens, x[rows, :longest])
        orders.append(list(np.concatenate([rows for _, rows in epoch])))
        assert sorted(orders[-1]) == list(y)
    assert orders[0] != orders[1] or count < 10


def test_word_dropout_leaves_words_out():
    x = np.tile(np.arange(1, 201, dtype="int32"), (50, 1))
    config = tiny(masked=True, batch_size=50, word_dropout=0.3)
    data = lstm.batches(x, np.zeros(50), config, training=True)
    (first,), (second,) = (list(data.as_numpy_iterator()) for _ in range(2))
    for tokens in (*first[0], *second[0]):
        left = tokens[tokens > 0]
        assert 100 < len(left) < 180 and left[0] == 1 and (np.diff(left) > 0).all()
    assert first[0].shape != second[0].shape or (first[0] != second[0]).any()
    ((whole, _),) = lstm.batches(x, np.zeros(50), config)
    np.testing.assert_array_equal(whole, x)


def outputs_and_gradients(layer, x, mask, training=True, graph=True):
    """Output and gradients of a loss that weighs every output differently."""

    def run(x, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, mask=mask, training=training)
            numbers = tf.range(tf.size(y), dtype="float32")
            loss = tf.reduce_sum(y * tf.reshape(tf.sin(numbers), tf.shape(y)))
        variables = [variable.value for variable in layer.trainable_variables]
        return [y, *tape.gradient(loss, [x, *variables])]

    run = tf.function(run) if graph else run
    return run(tf.constant(x), None if mask is None else tf.constant(mask))


def pair(units, shape, **options):
    """A FastLSTM and a keras LSTM with the same random weights."""
    layers = lstm.FastLSTM(units, **options), keras.layers.LSTM(units, **options)
    rng = np.random.default_rng(0)
    for layer in layers:
        layer.build(shape)
    values = [rng.normal(0, 0.5, w.shape) for w in layers[0].get_weights()]
    for layer in layers:
        layer.set_weights(values)
    return layers


def assert_same(fast, plain, x, mask, **how):
    for ours, keras_own in zip(
        outputs_and_gradients(fast, x, mask, **how),
        outputs_and_gradients(plain, x, mask, **how),
    ):
        scale = np.abs(keras_own).max()
        np.testing.assert_allclose(ours, keras_own, rtol=0, atol=1e-5 * scale)


@pytest.fixture
def fast_runs(monkeypatch):
    """A list that grows whenever the fast form runs."""
    runs, states = [], lstm.lstm_states

    def spy(*arguments):
        runs.append(arguments)
        return states(*arguments)

    monkeypatch.setattr(lstm, "lstm_states", spy)
    return runs


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 127, 128])
def test_fast_lstm_computes_what_keras_does(masked, batch, fast_runs):
    fast, plain = pair(10, (None, None, 15))
    rng = np.random.default_rng(batch)
    x = rng.normal(size=(batch, 40, 15)).astype("float32")
    lengths = rng.integers(1, 38, batch)
    assert_same(fast, plain, x, np.arange(40) < lengths[:, None] if masked else None)
    assert fast_runs


@pytest.mark.parametrize("masked", [False, True])
def test_all_states_are_those_of_keras(masked):
    fast, plain = pair(4, (None, None, 3), return_sequences=True)
    x = np.random.default_rng(0).normal(size=(5, 9, 3)).astype("float32")
    mask = np.arange(9) < np.array([[9], [4], [1], [7], [2]])
    assert_same(fast, plain, x, mask if masked else None)


def test_review_of_nothing_but_padding_is_that_of_keras():
    fast, plain = pair(4, (None, None, 3))
    x = np.random.default_rng(0).normal(size=(2, 9, 3)).astype("float32")
    assert_same(fast, plain, x, np.arange(9) < np.array([[4], [0]]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("graph", [True, False])
def test_fast_lstm_in_a_loop_of_ones_own(training, graph, fast_runs):
    fast, plain = pair(4, (None, None, 3), dropout=0.5, seed=7)
    x = np.random.default_rng(0).normal(size=(5, 9, 3)).astype("float32")
    mask = np.arange(9) < np.array([[9], [4], [1], [7], [2]])
    assert_same(fast, plain, x, mask, training=training, graph=graph)
    np.testing.assert_array_equal(fast(x), fast(x))
    assert fast_runs


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"recurrent_activation": "hard_sigmoid"}])
def test_concat_pooling_computes_what_keras_layers_do(masked, options):
    inputs = keras.Input((30, 5))
    states = keras.layers.LSTM(7, return_sequences=True, **options)(inputs)
    average = keras.layers.GlobalAveragePooling1D()(states)
    parts = [states[:, -1], average, keras.ops.max(states, axis=1)]
    plain = keras.Model(inputs, keras.layers.Concatenate()(parts))
    states = lstm.FastLSTM(7, return_sequences=True, **options)(inputs)
    fast = keras.Model(inputs, lstm.ConcatPooling()(states))
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.5, w.shape) for w in fast.get_weights()]
    fast.set_weights(weights)
    plain.set_weights(weights)

    x = rng.normal(size=(13, 30, 5)).astype("float32")
    lengths = rng.integers(1, 25, 13)
    assert_same(fast, plain, x, np.arange(30) < lengths[:, None] if masked else None)


@pytest.mark.parametrize("graph", [True, False])
def test_mask_that_is_not_right_padded_is_refused(graph):
    fast, _ = pair(4, (None, None, 3))
    mask = np.array([[True, True, False], [False, True, True]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="right-padded"):
        outputs_and_gradients(fast, np.ones((2, 3, 3), "float32"), mask, graph=graph)


def test_first_weights_are_those_of_keras():
    weights = []
    for kind in (lstm.FastLSTM, keras.layers.LSTM):
        keras.utils.set_random_seed(5)
        model = keras.Sequential([keras.Input((9,)), keras.layers.Embedding(20, 3)])
        model.add(kind(4))
        model.add(keras.layers.Dense(1))
        weights.append(model.get_weights())
    for ours, keras_own in zip(*weights):
        np.testing.assert_array_equal(ours, keras_own)


OTHERS = [
    {"activation": "relu"},
    {"recurrent_activation": "hard_sigmoid"},
    {"use_bias": False},
    {"recurrent_dropout": 0.5},
    {"unroll": True},
    {"go_backwards": True},
    {"zero_output_for_mask": True},
    {"return_state": True},
    {"stateful": True},
    {"dtype": "mixed_bfloat16"},
    {"dtype": "float64"},
]


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_fast_lstm_steps_aside(options, fast_runs):
    fast, plain = pair(4, (5, 9, 3), **options)
    x = np.random.default_rng(0).normal(size=(5, 9, 3)).astype("float32")
    mask = tf.constant(np.arange(9) < np.array([[9], [4], [1], [7], [2]]))
    for how in ({}, {"mask": mask}):
        outputs = [tf.nest.flatten(layer(x, **how)) for layer in (fast, plain)]
        for ours, keras_own in zip(*outputs, strict=True):
            assert ours.dtype == keras_own.dtype
            np.testing.assert_array_equal(ours, keras_own)
    assert not fast_runs


def test_fast_lstm_knows_every_option_of_keras():
    harmless = {"name", "trainable", "units", "dropout", "seed", "unit_forget_bias"}
    harmless |= {"return_sequences"}  # as fast or not, with the same numbers
    for name in keras.layers.LSTM(1).get_config():
        known = name.endswith(("initializer", "regularizer", "constraint"))
        assert known or name in harmless or any(name in others for others in OTHERS)


def test_fast_lstm_steps_aside_on_a_gpu(monkeypatch, fast_runs):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    lstm.FastLSTM(4)(np.ones((2, 3, 3), "float32"))
    assert not fast_runs


def test_fast_lstm_steps_aside_for_an_option_of_a_later_keras(monkeypatch, fast_runs):
    config = keras.layers.LSTM.get_config
    later = {"peepholes": True}
    monkeypatch.setattr(keras.layers.LSTM, "get_config", lambda s: config(s) | later)
    lstm.FastLSTM(4)(np.ones((2, 3, 3), "float32"))
    assert not fast_runs


@pytest.mark.parametrize("masked", [False, True])
def test_training_follows_keras(masked, tmp_path):
    fields = {"masked": masked, "number_of_epochs": 3, "batch_size": 50}
    config = tiny(**fields, model_path=str(tmp_path / "lstm.keras"))
    _, ours, test_results = lstm.main(config)

    (x, y), (x_test, y_test), vocabulary = lstm.load_data(config)
    x, x_test = (lstm.prepare(part, vocabulary, config) for part in (x, x_test))
    keras.utils.set_random_seed(config.seed)
    plain = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Embedding(100, 15, mask_zero=masked),
            keras.layers.LSTM(10),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    plain.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    theirs = plain.fit(
        lstm.batches(x[:240], y[:240], config, training=True),
        validation_data=(x[240:], y[240:]),
        epochs=3,
        verbose=0,
    )
    assert set(ours.history) == set(theirs.history)
    for name, curve in theirs.history.items():
        np.testing.assert_allclose(ours.history[name], curve, atol=1e-4)
    expected = plain.evaluate(x_test, y_test, verbose=0, return_dict=True)
    assert test_results == pytest.approx(expected, abs=1e-4)


OPTIONS = {
    "units": 7,
    "activation": "relu",
    "recurrent_activation": "hard_sigmoid",
    "unit_forget_bias": False,
    "kernel_initializer": "he_normal",
    "recurrent_regularizer": "l1",
    "activity_regularizer": "l2",
    "bias_constraint": "non_neg",
    "dropout": 0.2,
    "recurrent_dropout": 0.1,
    "go_backwards": True,
}


@pytest.mark.parametrize(
    ("preset", "options"),
    [("article", OPTIONS), ("tuned", OPTIONS), ("article", {"unroll": True})],
    ids=["article", "tuned", "unroll"],
)
def test_training_takes_the_options_of_keras(preset, options, tmp_path):
    path = str(tmp_path / "lstm.keras")
    model, *_ = lstm.main(tiny(preset, lstm_options=options, model_path=path))
    texts = ["word1 word2", "word150"]
    kept = lstm.predict(texts, lstm.load(path))
    np.testing.assert_allclose(kept, lstm.predict(texts, model), rtol=1e-5)


def test_huge_batches(capsys, tmp_path):
    path = str(tmp_path / "lstm.keras")
    config = tiny(batch_size=1_000_000, verbosity_mode=1, model_path=path)
    _, history, _ = lstm.main(config)
    assert 0.5 < history.history["loss"][0] < 1
    assert "Epoch 1/1 - " in capsys.readouterr().out

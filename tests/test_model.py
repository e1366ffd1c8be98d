"""The parts, compared with Keras's own: loading, padding, the LSTM's numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import lstm


def test_import_runs_nothing(capfd):
    assert not hasattr(lstm, "model")


def test_load_and_pad_as_keras(reviews, monkeypatch):
    monkeypatch.setattr(keras.utils, "get_file", lambda *a, **k: str(reviews))
    monkeypatch.setattr(
        "keras.src.datasets.imdb.get_file", lambda *a, **k: str(reviews)
    )
    for words, length in ((100, 20), (30, 3), (1000, 60), (100, 1)):
        config = lstm.Config(num_distinct_words=words, max_sequence_length=length)
        expected = keras.datasets.imdb.load_data(num_words=words)
        for (x, y), (keras_x, keras_y) in zip(lstm.load_imdb(), expected):
            keras_x = keras.utils.pad_sequences(keras_x, maxlen=length)
            vocabulary = ["word"] * (words - 4)
            np.testing.assert_array_equal(lstm.pad(x, vocabulary, config), keras_x)
            np.testing.assert_array_equal(y, keras_y)


def test_telling_pairs_become_words():
    words = ["a", "b", "c", "d"]
    good, bad = [1, 2, 3, 1], [2, 1, 1, 3]  # "a b" and "c a" are good, "b a" is bad
    reviews = [good, bad, [*good, 4], [4, *bad], [4, 1, 1, 4], [4, 1, 1, 4]]
    labels = np.array([1, 0, 1, 0, 1, 0])
    pairs = lstm.telling_pairs(reviews, labels, words, 6)
    assert pairs == ["a a", "a b", "a c", "b a", "b c", "c a"]
    assert lstm.telling_pairs(reviews, labels, words, 3) == ["a b", "a c", "b a"]
    assert lstm.telling_pairs(reviews, labels, words, 0) == []
    assert lstm.telling_pairs(reviews, labels, ["a"], 9) == ["a a"]

    vocabulary = [*words, "a b", "b a"]  # ranks 5 and 6
    config = lstm.Config(max_sequence_length=7)
    padded = lstm.pad([[1, 2, 1], [2], [1], [9, 2, 1, 2, 9, 1]], vocabulary, config)
    assert padded.tolist() == [
        [0, 1, 4, 5, 8, 4, 9],
        [0, 0, 0, 0, 0, 1, 5],
        [0, 0, 0, 0, 0, 1, 4],  # "b" of the review before is none of its neighbours
        [5, 4, 9, 5, 8, 2, 4],
    ]


def test_rarest_words_are_kept():
    config = lstm.Config(max_sequence_length=4, masked=True, rarest=True)
    reviews = [[1, 9, 2], [1, 3, 2, 1, 2, 9], [], [9, 9, 9, 9, 1]]
    assert lstm.pad(reviews, ["word"] * 5, config).tolist() == [
        [1, 4, 5, 0],
        [1, 6, 5, 5],
        [1, 0, 0, 0],
        [1, 4, 0, 0],
    ]


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


def pair(units, features, **options):
    """A FastLSTM and a keras LSTM with the same random weights."""
    layers = lstm.FastLSTM(units, **options), keras.layers.LSTM(units, **options)
    rng = np.random.default_rng(0)
    for layer in layers:
        layer.build((None, None, features))
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


@pytest.mark.parametrize("padding", [None, "after", "before", "anywhere"])
def test_fast_lstm_computes_what_keras_does(padding):
    fast, plain = pair(10, 15)
    assert fast.applies(None)
    for batch in (1, 2, 3, 127, 128):
        rng = np.random.default_rng(batch)
        x = rng.normal(size=(batch, 40, 15)).astype("float32")
        lengths = rng.integers(1, 38, batch)
        mask = {
            None: None,
            "after": np.arange(40) < lengths[:, None],
            "before": np.arange(40) >= 40 - lengths[:, None],
            "anywhere": rng.random((batch, 40)) < 0.5,
        }[padding]
        assert_same(fast, plain, x, mask)


@pytest.mark.parametrize("padding", [None, "after"])
def test_wide_readout_computes_what_keras_layers_do(padding):
    fast = lstm.FastLSTM(7, readout="all")
    fast.build((None, 30, 5))
    rng = np.random.default_rng(0)
    fast.set_weights([rng.normal(0, 0.5, w.shape) for w in fast.get_weights()])

    inputs = keras.Input((30, 5))
    states = keras.layers.LSTM.from_config(fast.get_config())(inputs)
    parts = [
        states[:, -1],
        keras.layers.GlobalAveragePooling1D()(states),
        keras.ops.max(states, axis=1),
    ]
    plain = keras.Model(inputs, keras.layers.Concatenate()(parts))
    plain.set_weights(fast.get_weights())

    x = rng.normal(size=(130, 30, 5)).astype("float32")
    lengths = rng.integers(1, 25, 130)
    mask = np.arange(30) < lengths[:, None] if padding else None
    assert_same(fast, plain, x, mask)
    fast.applies = lambda *_: False  # Keras's own loop, then the readout in TensorFlow
    assert_same(fast, plain, x, mask)


def test_fast_lstm_drops_the_numbers_that_keras_drops():
    fast, plain = pair(4, 3, dropout=0.5, seed=7)
    x = np.random.default_rng(0).normal(size=(130, 9, 3)).astype("float32")
    assert fast.applies(None)
    assert_same(fast, plain, x, None)
    np.testing.assert_array_equal(fast(x), fast(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("graph", [True, False])
def test_fast_lstm_in_a_loop_of_ones_own(training, graph):
    fast, plain = pair(4, 3)
    x = np.random.default_rng(0).normal(size=(5, 9, 3)).astype("float32")
    mask = np.arange(9) < np.array([[9], [4], [1], [7], [2]])
    assert fast.applies(None)
    assert_same(fast, plain, x, mask, training=training, graph=graph)


def test_fast_lstm_backwards():
    fast, plain = pair(4, 3, go_backwards=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 9, 3)).astype("float32")
    assert fast.applies(None)
    assert_same(fast, plain, x, None)
    assert_same(fast, plain, x, rng.random((5, 9)) < 0.6)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},
        {"recurrent_activation": "hard_sigmoid"},
        {"use_bias": False},
        {"recurrent_dropout": 0.5},
        {"unroll": True},
        {"dtype": "mixed_bfloat16"},
        {"dtype": "float64"},
    ],
)
def test_fast_lstm_steps_aside(options, monkeypatch):
    fast, plain = pair(4, 3, **options)
    assert not fast.applies(None)

    def never(*_):
        raise AssertionError("the fast form ran")

    monkeypatch.setattr(lstm, "forward", never)
    x = np.random.default_rng(0).normal(size=(5, 9, 3)).astype("float32")
    for training in (True, False):
        assert fast(x, training=training).shape == (5, 4)
    np.testing.assert_array_equal(fast(x), plain(x))


def test_fast_lstm_steps_aside_on_a_gpu(monkeypatch):
    fast, _ = pair(4, 3)
    assert fast.applies(None)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    assert not fast.applies(None)


def test_training_follows_keras(reviews, monkeypatch):
    monkeypatch.setattr(keras.utils, "get_file", lambda *a, **k: str(reviews))
    config = lstm.Config(
        num_distinct_words=100, max_sequence_length=30, verbosity_mode=0, batch_size=32
    )
    (x, y), _ = lstm.load_imdb()
    x = lstm.pad(x, ["word"] * 96, config)
    keras.utils.set_random_seed(1)
    model = lstm.build_model(config)
    lstm.compile_model(model, len(x), config)
    ours = lstm.train(model, x, y, config).history

    keras.utils.set_random_seed(1)
    plain = keras.Sequential(
        [
            keras.Input((30,)),
            keras.layers.Embedding(100, 15),
            keras.layers.LSTM(10),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    plain.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    options = {"batch_size": 32, "epochs": 5, "validation_split": 0.2, "verbose": 0}
    theirs = plain.fit(x, y, **options).history
    for name, curve in theirs.items():
        np.testing.assert_allclose(ours[name], curve, atol=1e-4)


def test_training_step_is_a_graph(monkeypatch):
    eager = []

    def applies(self, initial_state):
        eager.append(tf.executing_eagerly())
        return True

    config = lstm.Config(num_distinct_words=10, max_sequence_length=5, verbosity_mode=0)
    monkeypatch.setattr(lstm.FastLSTM, "applies", applies)
    model = lstm.build_model(config)
    lstm.compile_model(model, 20, config)
    eager.clear()
    lstm.train(model, np.ones((20, 5), "int32"), np.ones(20), config)
    assert eager and not any(eager)


def test_batches_come_in_the_order_of_fit():
    x, y = np.arange(50, dtype="float32")[:, None], np.arange(50)
    curves = []
    for arrays in (True, False):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        if arrays:
            history = model.fit(x, y, batch_size=8, epochs=3, verbose=0)
        else:
            data = lstm.as_input(x, y, lstm.Config(batch_size=8), True)
            history = model.fit(data, shuffle=False, epochs=3, verbose=0)
        curves.append(history.history["loss"])
    assert curves[0] == curves[1]


def test_batches_by_length_hold_every_review_once():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 100)
    x = np.where(np.arange(30) < lengths[:, None], rng.integers(4, 90, (100, 30)), 0)
    y = np.arange(100)
    config = lstm.Config(masked=True, batch_size=8)
    batches = list(lstm.as_input(x, y, config, True).as_numpy_iterator())
    assert sorted(np.concatenate([labels for _, labels in batches])) == list(y)
    for tokens, rows in batches:
        longest = lengths[rows].max()
        assert tokens.shape[1] == longest and np.ptp(lengths[rows]) < 10
        np.testing.assert_array_equal(tokens, x[rows, :longest])


def test_word_dropout_leaves_words_out():
    x = np.tile(np.arange(1, 201, dtype="int32"), (50, 1))
    config = lstm.Config(masked=True, batch_size=50, word_dropout=0.3)
    data = lstm.as_input(x, np.zeros(50), config, True)
    (first,), (second,) = (list(data.as_numpy_iterator()) for _ in range(2))
    for tokens in (*first[0], *second[0]):
        left = tokens[tokens > 0]
        assert 100 < len(left) < 180 and left[0] == 1 and (np.diff(left) > 0).all()
    assert first[0].shape != second[0].shape or (first[0] != second[0]).any()
    ((whole, _),) = lstm.as_input(x, np.zeros(50), config, False)
    np.testing.assert_array_equal(whole, x)


@pytest.mark.parametrize(
    "given",
    [
        {"loss_function": "entropy"},
        {"loss_function": "ctc"},
        {"loss_function": "sparse_categorical_crossentropy"},
        {"additional_metrics": ("acuracy",)},
        {"additional_metrics": ("accuracy", "top_k_categorical_accuracy")},
        {"lstm_options": {"kernel_regularizer": "l7"}},
        {"lstm_options": {"dropout": 7}},
        {"lstm_options": {"activation": "tanhh"}},
        {"optimizer": "adamm"},
    ],
)
def test_what_keras_refuses_names_the_field_before_loading(given, monkeypatch):
    (name,) = given
    monkeypatch.setattr(lstm, "load_data", None)
    with pytest.raises(lstm.UserError, match=rf"\A{name}: .*\Z"):
        lstm.main(lstm.Config(**given))


@pytest.mark.parametrize("name", ["acc", "auc", "binary_accuracy", "hinge"])
def test_what_keras_takes_as_a_metric(name):
    lstm.check_compiles(lstm.Config(additional_metrics=(name,)))


@pytest.mark.parametrize("content", [b"", b"no zip file"])
def test_damaged_copy(content, tmp_path, monkeypatch):
    damaged = tmp_path / "imdb.npz"
    damaged.write_bytes(content)
    monkeypatch.setattr(keras.utils, "get_file", lambda *a, **k: str(damaged))
    with pytest.raises(lstm.UserError, match="damaged"):
        lstm.load_imdb()


def test_presets_lose_against_what_is_given():
    for name, values in lstm.PRESETS.items():
        assert lstm.Config(preset=name, lstm_units=3).lstm_units == 3
        config, _ = lstm.parse_command_line(["--preset", name, "--lstm_units=3"])
        assert config == lstm.Config(preset=name, lstm_units=3)
        for field, value in values.items():
            assert getattr(lstm.Config(preset=name), field) == value


def test_cpu_switch_that_comes_too_late_is_refused(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    with pytest.raises(lstm.UserError, match="force_cpu: .* restart"):
        lstm.main(lstm.Config(force_cpu=True))

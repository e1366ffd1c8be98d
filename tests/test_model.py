"""The parts, compared with Keras's own: data, batches, the LSTM, training."""

import gc
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS, tiny

import lstm

LAYERS = keras.layers


def vocabulary_of(*tokens):
    """A dict from token to id: four special tokens, then these."""
    return dict(zip([*lstm.SPECIAL, *tokens], itertools.count()))


@pytest.mark.parametrize(("words", "length"), [(100, 20), (30, 3), (1000, 60), (4, 1)])
def test_load_and_pad_as_keras(words, length):
    config = tiny(num_distinct_words=words, max_sequence_length=length)
    *parts, vocabulary = lstm.load_data(config)
    special = [("", 0), ("[UNK]", 1), ("[START]", 2), ("[UNUSED]", 3)]
    ids = zip(WORDS[: words - 4], range(4, words))
    assert [*vocabulary.items()] == [*special, *ids]
    expected = keras.datasets.imdb.load_data(num_words=words)
    swapped = np.array([0, 2, 1, *range(3, words)])  # Keras begins a review with 1
    for (x, y), (keras_x, keras_y) in zip(parts, expected):
        x = lstm.prepare(x, vocabulary, config)
        keras_x = swapped[keras.utils.pad_sequences(keras_x, maxlen=length)]
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
    words = vocabulary_of("a", "b", "c", "d")
    good, bad = [4, 5, 6, 4], [5, 4, 4, 6]  # "a b" and "c a" are good, "b a" is bad
    reviews = [good, bad, [*good, 7], [7, *bad], [7, 4, 1, 4, 4, 7], [7, 4, 4, 7]]
    reviews = np.array([[2, *review] for review in reviews], object)
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
    vocabulary = vocabulary_of("a", "b", "c", "d", "a b", "b a")
    reviews = [[2, 4, 5, 4], [2, 5], [2, 4], [2, 1, 5, 4, 5, 1, 4]]
    assert lstm.prepare(reviews, vocabulary, config).tolist() == [
        [0, 2, 4, 5, 8, 4, 9],
        [0, 0, 0, 0, 0, 2, 5],
        [0, 0, 0, 0, 0, 2, 4],  # "b" of the review before is none of its neighbours
        [5, 4, 9, 5, 8, 1, 4],
    ]


def test_rarest_words_are_kept():
    config = tiny(max_sequence_length=4, masked=True, rarest=True)
    reviews = [[2, 4, 1, 5], [2, 4, 6, 5, 4, 5, 1], [2], [2, 1, 1, 1, 1, 4]]
    vocabulary = vocabulary_of(*WORDS[:5])
    first, second, *others = lstm.prepare(reviews, vocabulary, config).tolist()
    assert first == [2, 4, 5, 0]
    assert second[-3:] == [5, 4, 5] or second[-3:] == [6, 5, 5] or second[-1] == 5
    assert sorted(second)[-3:] == [5, 5, 6]  # the frequent 4 went first
    assert others == [[2, 0, 0, 0], [2, 4, 0, 0]]


def some_reviews(count, length=30):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, length, count)
    words = rng.integers(4, 90, (count, length), "int32")
    return np.where(np.arange(length) < lengths[:, None], words, 0), lengths


@pytest.mark.parametrize(
    ("masked", "cut"), [(False, False), (True, True), (True, False)]
)
@pytest.mark.parametrize(("count", "size"), [(100, 8), (7, 8), (1, 99), (64, 8)])
def test_batches_hold_every_review_once(masked, cut, count, size):
    x, lengths = some_reviews(count)
    y, orders = np.arange(count), []
    config = tiny(masked=masked, batch_size=size)
    data = lstm.batches(x, y, config, cut)
    assert int(data.cardinality()) == -(-count // size)
    for _ in range(2):
        epoch = list(data.as_numpy_iterator())
        sizes = [len(rows) for _, rows in epoch]
        assert len(sizes) == -(-count // size)
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
        for tokens, rows in epoch:
            longest = lengths[rows].max() if cut else 30
            assert tokens.shape == (len(rows), longest)
            assert not masked or np.ptp(lengths[rows]) < 15 or count < 10
            np.testing.assert_array_equal(tokens, x[rows, :longest])
        orders.append(list(np.concatenate([rows for _, rows in epoch])))
        assert sorted(orders[-1]) == list(y)
    assert orders[0] != orders[1] or count < 10


@pytest.mark.parametrize("masked", [False, True])
def test_word_dropout_leaves_words_out(masked):
    x = np.tile(np.arange(1, 201, dtype="int32"), (50, 1))
    config = tiny(masked=masked, batch_size=50, word_dropout=0.3)
    data = lstm.batches(x, np.zeros(50), config, masked)
    (first,), (second,) = (list(data.as_numpy_iterator()) for _ in range(2))
    for tokens in (*first[0], *second[0]):
        left = tokens[tokens > 0]
        assert 100 < len(left) < 180 and left[0] == 1 and (np.diff(left) > 0).all()
        assert tokens[0 if masked else -1] != 0  # the padding's side
    assert first[0].shape != second[0].shape or (first[0] != second[0]).any()


def outputs_and_gradients(model, x, mask, training=True, graph=False):
    """Output and gradients of a loss that weighs every output differently."""

    def run(x, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, mask=mask, training=training)
            numbers = tf.range(tf.size(y), dtype="float32")
            loss = tf.reduce_sum(y * tf.reshape(tf.sin(numbers), tf.shape(y)))
        variables = [variable.value for variable in model.trainable_variables]
        return [y, *tape.gradient(loss, [x, *variables])]

    run = tf.function(run) if graph else run
    return run(tf.constant(x), None if mask is None else tf.constant(mask))


def pair(make, features=3):
    """A Sequential with the fast loop, and the same of plain Keras: equal weights."""
    inputs = keras.Input((None, features))
    fast, plain = (keras.Sequential([inputs, *make()]) for _ in range(2))
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.5, w.shape) for w in fast.get_weights()]
    fast.set_weights(weights)
    plain.set_weights(weights)
    lstm.use_fast_loop(fast)
    return fast, plain


def assert_same(fast, plain, x, mask, **how):
    for ours, keras_own in zip(
        outputs_and_gradients(fast, x, mask, **how),
        outputs_and_gradients(plain, x, mask, **how),
        strict=True,
    ):
        scale = np.abs(keras_own).max()
        np.testing.assert_allclose(ours, keras_own, rtol=0, atol=1e-5 * scale)


@pytest.fixture
def fast_runs(monkeypatch):
    """A list that grows whenever TensorFlow's fast operation is called."""
    runs, operation = [], tf.raw_ops.BlockLSTM

    def spy(**arguments):
        runs.append(arguments)
        return operation(**arguments)

    monkeypatch.setattr(tf.raw_ops, "BlockLSTM", spy)
    return runs


def vectors(batch, steps=9, features=3):
    """Words of reviews as vectors; no two reviews are alike."""
    x = np.random.default_rng(batch).normal(size=(batch, steps, features))
    return x.astype("float32")


LENGTHS = np.array([[9], [4], [0], [1], [7]])  # 0: a review of nothing but padding
MASK = np.arange(9) < LENGTHS


def both_ways(units, **options):
    return LAYERS.Bidirectional(LAYERS.LSTM(units, **options))


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("sequences", [False, True], ids=["last", "sequences"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LAYERS.LSTM, {}),
        (LAYERS.LSTM, {"go_backwards": True}),
        (LAYERS.LSTM, {"zero_output_for_mask": True}),
        (LAYERS.LSTM, {"zero_output_for_mask": True, "go_backwards": True}),
        (both_ways, {}),
        (both_ways, {"zero_output_for_mask": True}),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else given.__name__,
)
def test_fast_loop_computes_what_keras_does(
    kind, options, sequences, masked, fast_runs
):
    zeros = kind is LAYERS.LSTM and "zero_output_for_mask" in options
    if masked and zeros and not sequences:
        layers = [LAYERS.Embedding(9, 3, mask_zero=True), kind(4, **options)]
        model = keras.Sequential([*layers, LAYERS.Dense(1, activation="sigmoid")])
        with pytest.raises(ValueError, match="zero_output_for_mask"):
            lstm.check_model(model, tiny())  # Keras's last state is then zeros
        return
    fast, plain = pair(lambda: [kind(4, return_sequences=sequences, **options)])
    assert_same(fast, plain, vectors(5), MASK if masked else None)
    runs = len(fast_runs)
    assert runs
    outputs_and_gradients(plain, vectors(5), None)
    assert len(fast_runs) == runs  # the other one is not changed


@pytest.mark.parametrize(("masked", "graph"), [(False, False), (True, True)])
@pytest.mark.parametrize("batch", [1, 2, 3, 127, 128])
def test_fast_loop_for_any_number_of_reviews(masked, graph, batch, fast_runs):
    fast, plain = pair(lambda: [LAYERS.LSTM(10)], features=15)
    lengths = np.random.default_rng(batch).integers(0, 18, (batch, 1))
    mask = np.arange(20) < lengths if masked else None
    assert_same(fast, plain, vectors(batch, 20, 15), mask, graph=graph)
    assert fast_runs


@pytest.mark.parametrize("masked", [False, True])
def test_fast_loops_on_top_of_each_other(masked, fast_runs):
    def layers():
        first = LAYERS.Bidirectional(LAYERS.LSTM(3, return_sequences=True))
        second = LAYERS.LSTM(4, return_sequences=True, go_backwards=not masked)
        return [first, LAYERS.Dropout(0.0), second, LAYERS.LSTM(5), LAYERS.Dense(2)]

    fast, plain = pair(layers)
    assert_same(fast, plain, vectors(5), MASK if masked else None)
    assert len({arguments["w"].shape for arguments in fast_runs}) == 3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("kind", [LAYERS.LSTM, both_ways])
def test_fast_loop_drops_out_what_keras_does(kind, training, graph, fast_runs):
    fast, plain = pair(lambda: [kind(4, dropout=0.5, seed=7)])
    assert_same(fast, plain, vectors(5), MASK, training=training, graph=graph)
    np.testing.assert_array_equal(fast(vectors(5)), fast(vectors(5)))
    assert fast_runs


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"recurrent_activation": "hard_sigmoid"}])
def test_concat_pooling_computes_what_keras_layers_do(masked, options):
    inputs = keras.Input((30, 5))
    states = LAYERS.LSTM(7, return_sequences=True, **options)(inputs)
    average = LAYERS.GlobalAveragePooling1D()(states)
    parts = [states[:, -1], average, keras.ops.max(states, axis=1)]
    plain = keras.Model(inputs, LAYERS.Concatenate()(parts))
    states = LAYERS.LSTM(7, return_sequences=True, **options)(inputs)
    fast = keras.Model(inputs, lstm.ConcatPooling()(states))
    lstm.use_fast_loop(fast)
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.5, w.shape) for w in fast.get_weights()]
    fast.set_weights(weights)
    plain.set_weights(weights)

    lengths = rng.integers(1, 25, (13, 1))
    mask = np.arange(30) < lengths if masked else None
    assert_same(fast, plain, vectors(13, 30, 5), mask)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("kind", [LAYERS.LSTM, both_ways])
def test_mask_that_is_not_right_padded_is_refused(kind, graph):
    fast, _ = pair(lambda: [kind(4)])
    mask = np.array([[True, True, False], [False, True, True]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="right-padded"):
        outputs_and_gradients(fast, vectors(2, 3), mask, graph=graph)


@pytest.mark.parametrize("preset", lstm.PRESETS)
def test_model_is_of_keras_and_so_are_its_first_weights(preset):
    config = tiny(preset, lstm_units=6, dropout=0.2)
    keras.utils.set_random_seed(5)
    model = lstm.build_model(config)
    first, configuration = model.get_weights(), model.get_config()
    lstm.use_fast_loop(model)
    assert model.get_config() == configuration
    kinds = [type(layer) for layer in model.layers]
    assert kinds[:2] == [LAYERS.Embedding, LAYERS.LSTM] and kinds[-1] == LAYERS.Dense

    keras.utils.set_random_seed(5)
    concat = config.pooling == "concat"
    tokens, dims = 100 + config.num_bigrams, config.embedding_output_dims
    plain = keras.Sequential([keras.Input((20,)), LAYERS.Embedding(tokens, dims)])
    plain.add(LAYERS.LSTM(6, dropout=0.2, return_sequences=concat))
    if concat:
        plain.add(lstm.ConcatPooling())
    plain.add(LAYERS.Dense(1))
    for ours, keras_own in zip(first, plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, keras_own)


OTHERS = [
    {"activation": "relu"},
    {"recurrent_activation": "hard_sigmoid"},
    {"use_bias": False},
    {"recurrent_dropout": 0.5},
    {"unroll": True},
    {"return_state": True},
    {"stateful": True},
    {"dtype": "mixed_bfloat16"},
    {"dtype": "float64"},
    {"units": 99},  # more than 40,000 weights
]


def any_layer(make):
    """A function, with the fast loop if it can be used, and the same of plain Keras."""
    inputs = keras.Input(batch_shape=(5, 9, 3))
    fast, plain = (keras.Model(inputs, make()(inputs)) for _ in range(2))
    plain.set_weights(fast.get_weights())
    lstm.use_fast_loop(fast)
    return fast, plain


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_fast_loop_steps_aside(options, fast_runs):
    fast, plain = any_layer(lambda: LAYERS.LSTM(**{"units": 4} | options))
    for mask in (None, tf.constant(MASK)):
        outputs = [
            tf.nest.flatten(model(vectors(5), mask=mask)) for model in (fast, plain)
        ]
        for ours, keras_own in zip(*outputs, strict=True):
            assert ours.dtype == keras_own.dtype
            np.testing.assert_array_equal(ours, keras_own)
    assert not fast_runs


def test_fast_loop_steps_aside_in_bidirectional(fast_runs):
    def make():
        backward = LAYERS.LSTM(4, go_backwards=True)
        forward = LAYERS.LSTM(4, activation="relu")
        return LAYERS.Bidirectional(forward, backward_layer=backward)

    fast, plain = any_layer(make)
    np.testing.assert_allclose(fast(vectors(5)), plain(vectors(5)), atol=1e-6)
    assert len(fast_runs) == 2  # two halves of the batch, one of two directions


def test_fast_loop_leaves_other_layers_alone(fast_runs):
    class Own(LAYERS.LSTM):
        pass

    for kind in (LAYERS.GRU, LAYERS.SimpleRNN, Own):
        fast, plain = any_layer(lambda kind=kind: kind(4))
        np.testing.assert_array_equal(fast(vectors(5)), plain(vectors(5)))
    assert not fast_runs


def test_fast_loop_knows_every_option_of_keras():
    harmless = {"name", "trainable", "units", "dropout", "seed", "unit_forget_bias"}
    harmless |= {"return_sequences", "go_backwards", "zero_output_for_mask"}
    for name in LAYERS.LSTM(1).get_config():
        known = name.endswith(("initializer", "regularizer", "constraint"))
        assert known or name in harmless or any(name in others for others in OTHERS)


def test_fast_loop_steps_aside_for_many_weights_and_on_a_gpu(monkeypatch, fast_runs):
    any_layer(lambda: LAYERS.LSTM(98))[0](vectors(5))
    assert fast_runs  # 39,984 weights
    fast_runs.clear()
    with monkeypatch.context() as patch:
        patch.setattr(tf.config, "list_logical_devices", lambda *_: ["a GPU"])
        fast, _ = any_layer(lambda: LAYERS.LSTM(4))
    fast(vectors(5))
    assert not fast_runs


class DenseEmbedding(LAYERS.Embedding):
    """An embedding by multiplication: its gradient is a tensor, one row for a word."""

    def call(self, tokens):
        return keras.ops.one_hot(tokens, self.input_dim) @ self.embeddings


def test_adam_gets_the_sum_of_a_words_gradients():
    config = tiny(learning_rate=0.1)
    model = lstm.build_model(config)
    dense = keras.Sequential([keras.Input((20,)), DenseEmbedding(100, 15)])
    for layer in (LAYERS.LSTM(10), LAYERS.Dense(1, activation="sigmoid")):
        dense.add(layer)
    dense.set_weights(model.get_weights())
    lstm.compile_model(model, config)
    dense.compile(keras.optimizers.Adam(0.1), "binary_crossentropy")
    x, before = np.array([[4, 5, 4, 6, 5] * 4, [7] * 20]), model.get_weights()[0]
    for _ in range(2):
        model.train_on_batch(x, np.array([0, 1]))
        dense.train_on_batch(x, np.array([0, 1]))
    moved = np.abs(model.get_weights()[0] - before)
    assert (moved[[4, 5, 6, 7]] > 0).all() and not moved[8:].any()
    for ours, keras_own in zip(model.get_weights(), dense.get_weights()):
        np.testing.assert_allclose(ours, keras_own, atol=1e-4)


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
            DenseEmbedding(100, 15, mask_zero=masked),
            LAYERS.LSTM(10),
            LAYERS.Dense(1, activation="sigmoid"),
        ]
    )
    plain.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    theirs = plain.fit(
        lstm.batches(x[:240], y[:240], config, masked),
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
    [
        ("article", OPTIONS),
        ("tuned", OPTIONS | {"go_backwards": False}),
        ("article", {"unroll": True}),
    ],
    ids=["article", "tuned", "unroll"],
)
def test_training_takes_the_options_of_keras(preset, options, tmp_path):
    path = str(tmp_path / "lstm.keras")
    model, *_ = lstm.main(tiny(preset, lstm_options=options, model_path=path))
    texts = ["word1 word2", "word150"]
    kept = lstm.predict(texts, lstm.load(path))
    np.testing.assert_allclose(kept, lstm.predict(texts, model), rtol=1e-5)


@pytest.mark.parametrize("preset", ["article", "tuned"])
def test_batches_of_one_review(preset, tmp_path):
    path = str(tmp_path / "lstm.keras")
    config = tiny(preset, batch_size=1, learning_rate=0.001, model_path=path)
    _, history, results = lstm.main(config)
    assert 0 < history.history["loss"][0] < 0.7 and results["accuracy"] > 0.6


def test_huge_batches(capsys, tmp_path):
    path = str(tmp_path / "lstm.keras")
    config = tiny(batch_size=1_000_000, verbosity_mode=1, model_path=path)
    _, history, _ = lstm.main(config)
    assert 0.5 < history.history["loss"][0] < 1
    assert "\n1/1 - " in capsys.readouterr().out

"""The parts, compared with Keras's own: data, batches, the LSTM, training."""

import random
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, WORDS, as_number, assert_one_line, prepared, tiny

import lstm

LAYERS = keras.layers


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("batch_size", 16.0, 16),
        ("batch_size", np.int64(16), 16),
        ("batch_size", "16", 16),
        ("number_of_epochs", "2.0", 2),
        ("seed", 0, 0),
        ("learning_rate", "1e-3", 0.001),
        ("learning_rate", np.float32(0.5), 0.5),
        ("learning_rate", 2, 2.0),
        ("dropout", "0.2", 0.2),
        ("masked", np.True_, True),
        ("lstm_options", [("use_bias", False)], {"use_bias": False}),
        ("model_path", ROOT / "a.keras", str(ROOT / "a.keras")),
        ("data", ROOT / "a.csv", str(ROOT / "a.csv")),
    ],
)
def test_value_that_is_plainly_meant_is_taken(name, value, taken):
    given = getattr(lstm.Config(**{name: value}), name)
    assert given == taken and type(given) is type(taken)


def test_one_metric_is_not_read_letter_by_letter():
    for given in ("accuracy", ["accuracy"], ("accuracy",)):
        assert [*lstm.Config(additional_metrics=given).additional_metrics] == [
            "accuracy"
        ]


NUMBERS = ["much", "", None, [], float("nan"), float("inf"), 1j]
REFUSED = {
    "batch_size": [*NUMBERS, 16.5, "16.5", 0, -1, "0x10"],
    "number_of_epochs": [*NUMBERS, 0, 1e400],
    "num_distinct_words": [*NUMBERS, 0],
    "num_bigrams": [*NUMBERS, -1, 0.5],
    "patience": [*NUMBERS, -1],
    "learning_rate": [*NUMBERS, -0.1],
    "dropout": [*NUMBERS, 1, -0.1],
    "word_dropout": [*NUMBERS, 1.0],
    "validation_split": [*NUMBERS, 1, "20%"],
    "masked": [*NUMBERS, 2, 0.5, "yes"],
    "pooling": ["mean", None, 1],
    "additional_metrics": [None, 3],
    "lstm_options": [None, 3, "units", ["units"]],
    "model_path": ["lstm.h5", "", None, 3, b"lstm"],
    "data": [None, 3, ["a.csv"]],
    "plot": [None, 3],
}


@pytest.mark.parametrize("name", REFUSED)
def test_value_that_cannot_be_meant_is_refused(name):
    for value in REFUSED[name]:
        with pytest.raises(lstm.UserError, match=rf"\A{name}: .*\Z"):
            lstm.Config(**{name: value})


def test_table_of_pandas_is_refused_in_one_line():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    for name in ("data", "batch_size", "model_path", "masked"):
        with pytest.raises(lstm.UserError, match=rf"\A{name}: .*\Z"):
            lstm.Config(**{name: table})


def test_annotations_may_be_rewritten(python, tmp_path):
    source = (ROOT / "lstm.py").read_text(encoding="utf-8")
    start = source.index('"""', 3) + 4  # behind the docstring
    future = "from __future__ import annotations\n"
    changed = source[:start] + future + source[start:]
    changed = changed.replace(": float = ", ": float | None = ")
    assert changed.count("float | None") > 3
    (tmp_path / "lstm.py").write_text(changed, encoding="utf-8")
    help_text = python("lstm.py", "--help").stdout
    assert help_text == python(str(ROOT / "lstm.py"), "--help").stdout
    for value in ("--batch-size=16.5", "--dropout=1", "--learning-rate=nan"):
        process = python("lstm.py", value, expect=2)
        name = value[2:].partition("=")[0].replace("-", "_")
        assert_one_line(process.stderr, "lstm.py: error: ", f"{name}: ")


@pytest.mark.parametrize(("words", "length"), [(100, 20), (30, 3), (1000, 60), (4, 1)])
def test_load_and_pad_as_keras(words, length):
    config = tiny(num_distinct_words=words, max_sequence_length=length)
    *parts, vocabulary, same = lstm.load_data(config)
    assert vocabulary == WORDS[: words - 3] and same == config
    expected = keras.datasets.imdb.load_data(num_words=words + 1)
    ours = np.array([0, 2, 1, 0, *range(3, words)])  # Keras begins with 1, skips 3
    for (x, y), (keras_x, keras_y) in zip(parts, expected):
        x = prepared(x, [], config)
        keras_x = ours[keras.utils.pad_sequences(keras_x, maxlen=length)]
        np.testing.assert_array_equal(x, keras_x)
        np.testing.assert_array_equal(y, keras_y)
        assert (x.dtype, y.dtype) == ("int32", "int64")


def test_reviews_that_cannot_be_loaded(monkeypatch, tmp_path):
    damaged = tmp_path / "imdb.npz"
    damaged.write_bytes(b"no zip file")
    monkeypatch.setattr(lstm, "SAMPLE", str(tmp_path / "nothing.csv"))
    monkeypatch.setenv("KERAS_HOME", "/cache")
    for path in ("", str(damaged)):
        monkeypatch.setenv("IMDB_STAND_IN", path)
        with pytest.raises(lstm.UserError, match=r"\AIMDB: .*/cache/datasets.*\Z"):
            lstm.load_data(tiny())


def test_bigrams_that_tell_most():
    a, b, c, d = range(3, 7)
    good, bad = [a, b, c, a], [b, a, a, c]  # "a b" and "c a" are good, "b a" is bad
    reviews = [good, bad, [*good, d], [d, *bad], [d, a, 1, a, a, d], [d, a, a, d]]
    reviews = np.array([[2, *review] for review in reviews], object)
    labels = np.array([1, 0, 1, 0, 1, 0])

    def chosen(most):
        numbers = lstm.choose_bigrams(reviews, labels, tiny(num_bigrams=most))
        return {divmod(number, 2**32) for number in numbers}

    assert chosen(0) == set()
    assert chosen(4) == {(a, b), (a, c), (b, a), (b, c)}
    rest = {(a, a), (a, d), (c, a), (d, a), (d, b)}
    assert chosen(99) == chosen(4) | rest


def test_bigrams_are_tokens_between_their_words():
    config = tiny(max_sequence_length=7)
    a, b, a_b, b_a = 3, 4, 100, 101
    reviews = [[2, a, b, a], [2, b], [2, a], [2, 1, b, a, b, 1, a]]
    bigrams = [as_number(a, b), as_number(b, a)]
    assert prepared(reviews, bigrams, config).tolist() == [
        [0, 2, a, a_b, b, b_a, a],
        [0, 0, 0, 0, 0, 2, b],
        [0, 0, 0, 0, 0, 2, a],  # "b" of the review before is none of its neighbours
        [b, b_a, a, a_b, b, 1, a],
    ]


def test_rarest_words_are_kept():
    config = tiny(max_sequence_length=4, masked=True, rarest=True)
    reviews = [[2, 3, 1, 4], [2, 3, 5, 4, 3, 4, 1], [2], [2, 1, 1, 1, 1, 3]]
    assert prepared(reviews, [], config).tolist() == [
        [2, 3, 4, 0],
        [5, 4, 3, 4],  # of two equals the later one
        [2, 0, 0, 0],
        [2, 3, 0, 0],
    ]


READERS = {preset: (preset, {}) for preset in lstm.PRESETS} | {
    "masked": ("article", {"masked": True}),
    "bigrams": ("article", {"num_bigrams": 20}),
    "masked-bigrams": ("article", {"masked": True, "num_bigrams": 20}),
    "rarest-bigrams": ("article", {"rarest": True, "num_bigrams": 20}),
    "short": ("large", {"max_sequence_length": 3}),
    "one-token": ("tuned", {"max_sequence_length": 1}),
}


@pytest.mark.parametrize("name", READERS)
def test_kept_model_reads_the_ids_that_were_prepared(name):
    preset, fields = READERS[name]
    config = tiny(preset, **fields)
    rng = np.random.default_rng(3)
    common = rng.zipf(1.2, (2000, 60)) % 120 + 3  # some of them unknown words
    ids = np.where(common < 100, common, 1).tolist()
    reviews = np.empty(2000, object)
    for row, length in enumerate([0, 1, *rng.integers(0, 60, 1998)]):
        reviews[row] = [2, *ids[row][:length]]
    labels = rng.integers(0, 2, 2000)
    chooser = lstm.token_chooser(lstm.choose_bigrams(reviews, labels, config), config)
    as_they_are = LAYERS.Identity(dtype="int32")
    width = config.max_sequence_length
    model = keras.Sequential([keras.Input((width,), dtype="int32"), as_they_are])
    reads = lstm.with_texts(model, WORDS[:97], chooser)

    words = ["", "[UNK]", "[START]", *WORDS]
    texts = [" ".join(words[token] for token in review[1:]) for review in reviews]
    expected = lstm.prepare(reviews, chooser)
    np.testing.assert_array_equal(reads(tf.constant(texts)), expected)
    np.testing.assert_array_equal(reads(tf.constant([""])), expected[:1])
    assert (expected.max() > 99) == bool(config.num_bigrams)


def some_reviews(count, length=30):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, length, count)
    words = rng.integers(3, 90, (count, length), "int32")
    return np.where(np.arange(length) < lengths[:, None], words, 0), lengths


def two_epochs(model, *arguments):
    """The batches of two epochs, and the steps that each of them has."""
    data = lstm.training_batches(model, *arguments)
    return [list(data.as_numpy_iterator()) for _ in range(2)], len(data)


@pytest.mark.parametrize(
    ("masked", "cut"), [(False, False), (True, True), (True, False)]
)
@pytest.mark.parametrize(
    ("count", "most", "size"),
    [(1000, 8, 8), (1000, 99, 11), (250, 128, 3), (7, 8, 1), (1, 99, 1)],
)
def test_batches_hold_a_review_once(masked, cut, count, most, size):
    x, lengths = some_reviews(count)
    model = keras.Sequential([LAYERS.Embedding(100, 2, mask_zero=masked)])
    if not cut:
        model.add(LAYERS.Flatten())  # it reads the padding
    config = tiny(masked=masked, batch_size=most)
    epochs, steps = two_epochs(model, x, np.arange(count), config)
    assert steps == count // size  # some 100 or more, if there are as many reviews
    for epoch in epochs:
        assert len(epoch) == steps
        for tokens, rows in epoch:
            longest = lengths[rows].max() if cut else 30
            assert tokens.shape == (size, longest)
            assert not masked or np.ptp(lengths[rows]) < 3
            np.testing.assert_array_equal(tokens, x[rows, :longest])
    first, second = ([row for _, rows in epoch for row in rows] for epoch in epochs)
    assert len(set(first)) == len(set(second)) == steps * size
    assert first != second or count < 10


@pytest.mark.parametrize("masked", [False, True])
def test_word_dropout_leaves_words_out(masked):
    x = np.tile(np.arange(1, 201, dtype="int32"), (200, 1))
    model = keras.Sequential([LAYERS.Embedding(300, 2, mask_zero=masked)])
    config = tiny(masked=masked, batch_size=50, word_dropout=0.3)
    epochs, _ = two_epochs(model, x, np.zeros(200), config)
    seen = set()
    for tokens in (row for epoch in epochs for rows, _ in epoch for row in rows):
        left = tokens[tokens > 0]
        assert 100 < len(left) < 180 and left[0] == 1 and (np.diff(left) > 0).all()
        place = np.arange(1, 1 + len(left)) if masked else left  # or gaps stay
        np.testing.assert_array_equal(np.flatnonzero(tokens), place - 1)
        seen.add(tuple(left))
    assert len(seen) == 2 * 198  # each time others, of three reviews a step


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
    lstm.speed_up(fast)
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


LENGTHS = np.array([[9], [4], [2], [1], [7]])
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
    fast, plain = pair(lambda: [kind(4, return_sequences=sequences, **options)])
    assert_same(fast, plain, vectors(5), MASK if masked else None)
    # A mask is Keras's own where zeros lie over the padding, as in Bidirectional's
    # sequences, or where the time goes backwards.
    exact = not sequences if kind is both_ways else not options
    assert bool(fast_runs) == (exact or not masked)
    fast_runs.clear()
    outputs_and_gradients(plain, vectors(5), None)
    assert not fast_runs  # the other one is not changed


@pytest.mark.parametrize(("masked", "graph"), [(False, False), (True, True)])
@pytest.mark.parametrize("batch", [1, 2, 127, 128])
def test_fast_loop_for_any_number_of_reviews(masked, graph, batch, fast_runs):
    fast, plain = pair(lambda: [LAYERS.LSTM(10)], features=15)
    lengths = np.random.default_rng(batch).integers(1, 18, (batch, 1))
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
    shapes = {arguments["w"].shape for arguments in fast_runs}
    assert len(shapes) == (2 if masked else 3)  # masked, Bidirectional is Keras's own


@pytest.mark.parametrize(
    ("kind", "training", "graph"),
    [
        (LAYERS.LSTM, True, True),
        (LAYERS.LSTM, True, False),
        (LAYERS.LSTM, False, True),
        (both_ways, True, True),
    ],
)
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
    lstm.speed_up(fast)
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.5, w.shape) for w in fast.get_weights()]
    fast.set_weights(weights)
    plain.set_weights(weights)

    lengths = rng.integers(1, 25, (13, 1))
    mask = np.arange(30) < lengths if masked else None
    assert_same(fast, plain, vectors(13, 30, 5), mask)


@pytest.mark.parametrize("preset", lstm.PRESETS)
def test_model_is_of_keras_and_so_are_its_first_weights(preset):
    config = tiny(preset, lstm_units=6, dropout=0.2)
    keras.utils.set_random_seed(5)
    model = lstm.build_model(config)
    first, configuration = model.get_weights(), model.get_config()
    lstm.speed_up(model)
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
    {"dtype": "mixed_bfloat16"},
    {"dtype": "float64"},
    {"units": 99},  # more than 40,000 weights
]


def any_layer(make):
    """A function, with the fast loop if it can be used, and the same of plain Keras."""
    inputs = keras.Input(batch_shape=(5, 9, 3))
    fast, plain = (keras.Model(inputs, make()(inputs)) for _ in range(2))
    plain.set_weights(fast.get_weights())
    lstm.speed_up(fast)
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


def test_unrolled_layer_computes_the_same():
    fast, plain = any_layer(lambda: LAYERS.LSTM(4, unroll=True))
    for mask in (None, tf.constant(MASK)):
        outputs = [model(vectors(5), mask=mask) for model in (fast, plain)]
        np.testing.assert_allclose(*outputs, atol=1e-6)


def test_fast_loop_leaves_other_layers_alone(fast_runs):
    class Own(LAYERS.LSTM):
        pass

    for kind in (LAYERS.GRU, LAYERS.SimpleRNN, Own):
        fast, plain = any_layer(lambda kind=kind: kind(4))
        np.testing.assert_array_equal(fast(vectors(5)), plain(vectors(5)))
    assert not fast_runs


@pytest.mark.parametrize("shape", [(5, 9), (1, 1), (0, 9), (5, 0)], ids=str)
def test_fast_lookup_computes_what_keras_does(shape):
    inputs = keras.Input((None,), dtype="int32")
    fast, plain = (
        keras.Model(inputs, LAYERS.Embedding(7, 3, mask_zero=True)(inputs))
        for _ in range(2)
    )
    plain.set_weights(fast.get_weights())
    lstm.speed_up(fast)
    tokens = np.random.default_rng(0).integers(0, 7, shape)  # most of them twice
    results = []
    for model in (fast, plain):
        with tf.GradientTape() as tape:
            results.append(model(tokens))
            loss = tf.reduce_sum(results[-1] ** 2)
        results.append(tape.gradient(loss, model.trainable_variables[0].value))
    vectors, gradient, expected, slices = results
    np.testing.assert_array_equal(vectors, expected)
    assert isinstance(gradient, tf.Tensor)  # added up, unlike Keras's slices
    np.testing.assert_allclose(gradient, tf.convert_to_tensor(slices), rtol=1e-6)


def test_fast_loop_knows_every_option_of_keras():
    harmless = {"name", "trainable", "units", "dropout", "seed", "unit_forget_bias"}
    harmless |= {"return_sequences", "go_backwards", "zero_output_for_mask", "unroll"}
    harmless |= {"return_state", "stateful"}  # Keras refuses them in build_model
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


def test_naive_bayes_pushes_a_word_towards_its_label():
    config = tiny("large", naive_bayes=0.5)
    model = lstm.build_model(config)
    before = model.get_weights()[0]
    x, y = np.array([[2, 3, 3, 4], [2, 4, 5, 0], [2, 5, 6, 0]]), np.array([1, 0, 0])
    lstm.start_at_naive_bayes(model, x, y, config)
    moved = model.get_weights()[0] - before
    np.testing.assert_allclose(moved[3], 0.5 * np.log(2), rtol=1e-4)
    np.testing.assert_allclose(moved[5], 0.5 * np.log(1 / 3), rtol=1e-4)
    assert (np.ptp(moved, axis=1) < 1e-6).all() and not moved[7:].any()


class Summed(keras.optimizers.Adam):
    """Adam, given the sum of a word's gradients: Keras 3 squares each by itself."""

    def apply(self, grads, trainable_variables=None):
        super().apply([tf.convert_to_tensor(g) for g in grads], trainable_variables)


@pytest.mark.parametrize("masked", [False, True])
def test_training_follows_keras(masked, tmp_path):
    fields = {"masked": masked, "number_of_epochs": 1}
    config = tiny(**fields, model_path=str(tmp_path / "lstm.keras"))
    _, ours, test_results = lstm.main(config)

    (x, y), (x_test, y_test), _, _ = lstm.load_data(config)
    x, x_test = (prepared(part, [], config) for part in (x, x_test))
    keras.utils.set_random_seed(config.seed)
    plain = keras.Sequential(
        [
            keras.Input((20,)),
            LAYERS.Embedding(100, 15, mask_zero=masked),
            LAYERS.LSTM(10),
            LAYERS.Dense(1, activation="sigmoid"),
        ]
    )
    plain.compile(Summed(), "binary_crossentropy", metrics=["accuracy"])
    theirs = plain.fit(
        lstm.training_batches(plain, x[:240], y[:240], config),
        validation_data=(x[240:], y[240:]),
        epochs=1,
        shuffle=False,
        verbose=0,
    )
    assert set(ours.history) == set(theirs.history)
    for name, curve in theirs.history.items():
        np.testing.assert_allclose(ours.history[name], curve, atol=1e-4)
    expected = plain.evaluate(x_test, y_test, verbose=0, return_dict=True)
    assert test_results == pytest.approx(expected, abs=1e-4)


OPTIONS = {
    "activation": "relu",
    "recurrent_activation": "hard_sigmoid",
    "unit_forget_bias": False,
    "kernel_initializer": "he_normal",
    "recurrent_regularizer": "l1",
    "activity_regularizer": "l2",
    "bias_constraint": "non_neg",
    "recurrent_dropout": 0.1,
    "go_backwards": True,
}


def test_training_takes_the_options_of_keras(tmp_path):
    path = str(tmp_path / "lstm.keras")
    model, *_ = lstm.main(tiny(lstm_options=OPTIONS, model_path=path))
    texts = ["word1 word2", "word150"]
    kept = lstm.predict(texts, lstm.load(path))
    np.testing.assert_allclose(kept, lstm.predict(texts, model), rtol=1e-5)


def test_an_option_that_build_model_sets_is_named():
    for option in ({"units": 3}, {"dropout": 0.2}, {"return_sequences": True}):
        with pytest.raises(lstm.UserError, match=r"\Alstm_options: .*\Z"):
            lstm.main(tiny(lstm_options=option))


def test_batches_of_one_review(tmp_path):
    path = str(tmp_path / "lstm.keras")
    fields = {"batch_size": 1, "learning_rate": 0.001, "validation_split": 0.5}
    config = tiny("tuned", **fields, model_path=path)
    _, history, results = lstm.main(config)
    assert 0 < history.history["loss"][0] < 0.7 and results["accuracy"] > 0.6


def test_huge_batches_are_cut_and_callbacks_are_called(capsys, tmp_path):
    path, rows = str(tmp_path / "lstm.keras"), tmp_path / "epochs.csv"
    config = tiny(batch_size=1_000_000, verbosity_mode=1, model_path=path)
    _, history, _ = lstm.main(config, [keras.callbacks.CSVLogger(rows)])
    assert "\n80/80 - " in capsys.readouterr().out  # 240 reviews, three a step
    head, epoch = rows.read_text().splitlines()
    assert head == "epoch,accuracy,loss,val_accuracy,val_loss"
    assert [float(epoch.split(",")[2])] == pytest.approx(history.history["loss"])


@pytest.mark.parametrize("name", ["adam", "sgd", "RMSprop"])
def test_optimizer_and_learning_rate(name, tmp_path):
    class Stop(Exception):
        pass

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise Stop(self.model.optimizer)

    path = str(tmp_path / "lstm.keras")
    for fields, rate in (({}, 0.001), ({"learning_rate": 0.5}, 0.5)):
        with pytest.raises(Stop) as stopped:
            lstm.main(tiny(optimizer=name, model_path=path, **fields), [Look()])
        optimizer = stopped.value.args[0]
        assert type(optimizer) is type(keras.optimizers.get(name))
        assert float(optimizer.learning_rate) == pytest.approx(rate)


def test_an_epoch_is_no_step_longer_than_the_reviews(tmp_path):
    class Look(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.steps = int(self.model.optimizer.iterations)
            self.rate = float(self.model.optimizer.learning_rate)

    look, path = Look(), str(tmp_path / "lstm.keras")
    fields = {"number_of_epochs": 2, "validation_split": 0.1, "cosine_decay": True}
    lstm.main(tiny(model_path=path, **fields), [look])
    assert look.steps == 2 * 90  # 270 reviews, three a step; eight steps in one go
    assert look.rate == pytest.approx(0, abs=1e-9)  # and not before


def test_a_review_is_left_to_train_on(tmp_path):
    path = tmp_path / "own.csv"
    rows = [f"word{n} film,{n % 2},{('train', 'test')[n > 9]}" for n in range(14)]
    path.write_text("\n".join(["text,label,split", *rows]))
    fields = {"data": path, "model_path": tmp_path / "lstm.keras"}
    _, history, _ = lstm.main(tiny(validation_split=0.9, **fields))
    assert {"loss", "val_loss"} <= {*history.history}
    _, history, _ = lstm.main(tiny(validation_split=0.01, **fields))
    assert {*history.history} == {"loss", "accuracy"}  # nothing is held out


def test_random_numbers_of_others_go_on(tmp_path):
    random.seed(7)
    np.random.seed(7)
    before = random.getstate(), repr(np.random.get_state())
    lstm.main(tiny(model_path=str(tmp_path / "lstm.keras")))
    after = random.getstate(), repr(np.random.get_state())
    assert after == before


def test_predict_reads_few_texts_at_once():
    class Length(LAYERS.Layer):
        def call(self, texts):
            return tf.cast(tf.strings.length(texts), "float32")[:, None]

    texts = keras.Input((), dtype="string")
    model = keras.Model(texts, Length()(texts))
    groups, predict_on_batch = [], model.predict_on_batch

    def spy(batch):
        groups.append(len(batch))
        return predict_on_batch(batch)

    model.predict_on_batch = spy
    lengths = np.random.default_rng(0).integers(1, 99, 1000)
    results = lstm.predict(["a" * length for length in lengths], model)
    np.testing.assert_array_equal(results, lengths)  # in the order of the texts
    assert max(groups) <= lstm.EVAL_BATCH and sum(groups) == 1000
    assert lstm.predict([], model).shape == (0,)


TWO_DEVICES = """
import lstm
import tensorflow as tf

(device,) = tf.config.list_physical_devices("CPU")
half = tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(device, [half, half])
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
small = {"num_distinct_words": 100, "max_sequence_length": 20, "verbosity_mode": 0}
small |= {"number_of_epochs": 1, "validation_split": 0.5, "learning_rate": 0.01}
small["num_bigrams"] = 20
with strategy.scope():  # large has what the other presets have
    model, _, results = lstm.main(lstm.Config(**lstm.PRESETS["large"] | small))
assert lstm.predict(["word1", "word2"], model).shape == (2,)
print("trained", results["accuracy"])
"""


def test_large_is_trained_on_two_devices(python):
    output = python("-c", TWO_DEVICES).stdout
    (accuracy,) = re.findall("^trained (.*)", output, re.MULTILINE)
    assert float(accuracy) > 0.6  # of 100 that are half and half

"""An LSTM that learns whether a film review is positive or negative.

`python lstm.py` reads the 50,000 IMDB reviews (17 MB, downloaded once), trains
Embedding -> LSTM -> Dense for five epochs, reports the accuracy on 25,000 reviews it
never saw, and keeps the model for `python lstm.py --predict "A wonderful film"`:

    --preset article    87.0 +- 0.5%, the values of Christian Versloot's article
    --preset tuned      89.6 +- 0.1%, the same words, put to better use
    --preset large      90.9 +- 0.1%, more words, and bigrams

Read it from the top to `main`; helpers follow. Each part is a cell (`# %%`).
"""

# %% Python's tools; TensorFlow follows once the CPU switch is set
import argparse
import contextlib
import csv
import gc
import importlib.util
import inspect
import itertools
import json
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass, field, fields

import numpy as np


class UserError(Exception):
    """A mistake of the user's: one line that names the field or the file at fault."""

    def _render_traceback_(self):  # what IPython shows in place of a traceback
        return [f"lstm.py: {self}"]


# %% Configuration
# Change a default here, or for one run with a flag, or `main(Config(lstm_units=32))`.
@dataclass(frozen=True)
class Config:
    """Every choice of a run. Raises UserError for a value that cannot work."""

    # Those of the article, Build an LSTM Model with TensorFlow 2.0 and Keras
    additional_metrics: tuple = ("accuracy",)  # watched beside the loss
    batch_size: int = 128  # reviews per training step
    embedding_output_dims: int = 15  # length of the vector that stands for a word
    loss_function: str = "binary_crossentropy"  # two classes, one probability
    max_sequence_length: int = 300  # tokens a review; longer ones are cut (see rarest)
    num_distinct_words: int = 5000  # size of the vocabulary, 4 special ids included
    number_of_epochs: int = 5  # passes over the training reviews
    optimizer: str = "adam"  # how the weights are updated, with Keras's defaults
    validation_split: float = 0.20  # share of the training set held out, from its end
    verbosity_mode: int = 1  # of the epochs: 0 silent, 1 progress, 2 one line each
    lstm_units: int = 10  # size of the LSTM's state
    # Beyond the article
    masked: bool = False  # pad after the text, skip the padding, batch by length
    rarest: bool = False  # drop unknown words; shorten by the commonest, not the start
    num_bigrams: int = 0  # how many word pairs, such as "not good", become tokens
    pooling: str = "last"  # Dense sees the last state; concat adds mean and maximum
    word_dropout: float = 0.0  # share of the words left out in training; needs masked
    dropout: float = 0.0  # share of the numbers set to 0 before and after the LSTM
    learning_rate: float = None  # in place of the optimizer's own
    cosine_decay: bool = False  # let the learning rate fall to 0 along a cosine
    lstm_options: dict = field(default_factory=dict)  # more of keras.layers.LSTM
    seed: int = 1  # same seed, same machine, same result
    force_cpu: bool = False  # hide a GPU that is slower; set before the import
    data: str = ""  # a CSV file with columns text and label, in place of IMDB
    model_path: str = "lstm.keras"  # where the trained model is kept
    plot: str = ""  # a picture to draw of the training, or of what --predict reads

    def __post_init__(self):
        least = {"num_distinct_words": 4, "verbosity_mode": 0}
        least |= {"num_bigrams": 0, "seed": 0}
        for f in fields(self):
            value, lowest = getattr(self, f.name), least.get(f.name, 1)
            if f.type is int and value < lowest:
                raise UserError(f"{f.name}: {value} is below {lowest}")
            if f.type is float and f.name != "learning_rate" and not 0 <= value < 1:
                raise UserError(f"{f.name}: {value} is not at least 0 and below 1")
        if self.pooling not in ("last", "concat"):
            raise UserError(f"pooling: {self.pooling!r} is neither last nor concat")
        if self.word_dropout and not self.masked:
            raise UserError("word_dropout: works on masked reviews only; add masked")
        if not str(self.model_path).endswith(".keras"):
            raise UserError(f"model_path: {self.model_path} must end in .keras")


PRESETS = {"article": {}}
# The same words, put to better use. Points: of held-out accuracy, lost without it.
PRESETS["tuned"] = {
    "masked": True,  # less work: no padding is read
    "rarest": True,  # 0.6 points
    "max_sequence_length": 250,  # 0 points, but fewer time steps than 300
    "pooling": "concat",  # 0.3 points
    "word_dropout": 0.5,  # 0.5 points, and half the time steps
    "learning_rate": 0.005,  # 0.2 points
    "cosine_decay": True,  # 0.2 points
    "embedding_output_dims": 32,  # 0.1 points
    "validation_split": 0.0,  # a quarter more reviews to learn from
}
PRESETS["large"] = PRESETS["tuned"] | {
    "num_distinct_words": 20000,  # 0.6 points
    "num_bigrams": 20000,  # 1.7 points; such as "not good"
    "dropout": 0.7,  # 0 points, 4% less loss
    "word_dropout": 0.6,  # 0 points, 2% less loss in cross-validation
    "lstm_units": 32,  # 0.1 points
}


# %% The command line: every field is a flag, and its comment is the flag's help
def parse_command_line(arguments):
    """Return the Config that `arguments` ask for, and the texts to predict or None."""

    def name_and_value(text):  # "dropout=0.2" is ("dropout", 0.2)
        name, _, value = text.partition("=")
        with contextlib.suppress(ValueError):
            value = json.loads(value.lower())  # a number, true or false; else a name
        return name, value

    parser = argparse.ArgumentParser(
        usage="python lstm.py [--FLAG VALUE ...] [--predict TEXT ...]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # only what was given overrides a preset
    )
    kinds = {
        bool: {"action": argparse.BooleanOptionalAction},
        tuple: {"nargs": "*", "metavar": "NAME"},
        dict: {"nargs": "*", "metavar": "NAME=VALUE", "type": name_and_value},
    }
    comments = dict(re.findall(r"\n    (\w+): .*  # (.+)", inspect.getsource(Config)))
    for f in fields(Config):
        kind = kinds.get(f.type, {"type": f.type, "metavar": f.type.__name__.upper()})
        text, flag = f"{comments[f.name]} ({getattr(Config(), f.name)})", f"--{f.name}"
        parser.add_argument(*sorted({flag, flag.replace("_", "-")}), help=text, **kind)
    text = "which values to start from (article)"
    parser.add_argument("--preset", choices=PRESETS, default="article", help=text)
    text = "texts to classify with the kept model; - for the lines of standard input"
    parser.add_argument("--predict", nargs="+", metavar="TEXT", default=None, help=text)
    given = vars(parser.parse_args(arguments))
    texts, preset = given.pop("predict"), PRESETS[given.pop("preset")]
    given["lstm_options"] = dict(given.get("lstm_options", []))
    try:
        return Config(**preset | given), texts
    except UserError as error:
        parser.error(str(error))  # exits with code 2, as for any wrong flag


IN_NOTEBOOK = "ipykernel" in sys.modules  # sys.argv is the kernel's, but for %run
IS_SCRIPT = __name__ == "__main__" and not (IN_NOTEBOOK and "kernel" in sys.argv[0])
config, texts = Config(), None  # texts to classify; None is to train
if IS_SCRIPT:
    config, texts = parse_command_line(sys.argv[1:])
    gc.disable()  # else Python searches 50,000 lists for garbage while they load
    if "IPython" not in sys.modules:  # Ctrl-C and a closed pipe end it like any tool
        sys.stdout.reconfigure(errors="replace")  # ? for what a terminal cannot show
        for name in {"SIGINT", "SIGPIPE"} & set(dir(signal)):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


# %% The CPU switch, and TensorFlow
# TensorFlow looks for a GPU when it is imported, so the switch has to come before.
if config.force_cpu:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can run on others; this file cannot
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # keeps memory to use again
stderr = os.dup(2)
if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:  # hide notes that its C++ writes anyway
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import keras
    import tensorflow as tf
finally:
    os.dup2(stderr, 2)
tf.get_logger().setLevel("ERROR")  # else a process that builds three models is warned


# %% Data: 25,000 reviews to train on and 25,000 to test with
# A review is a list of token ids: four are special, then come the words by frequency.
PADDING, START, OUT_OF_VOCABULARY, UNUSED, FIRST_WORD = range(5)  # as Keras's IMDB


def load_data(config):
    """Read IMDB, downloaded the first time, or config.data; raises UserError.
    Returns (x_train, y_train), (x_test, y_test), vocabulary: object arrays of reviews,
    int64 labels, 1 for positive, and a dict from word to id, by frequency."""
    if config.data:
        return read_csv(config)
    with as_user_error("IMDB: check the network, or empty ~/.keras/datasets"):
        train, test = keras.datasets.imdb.load_data(num_words=config.num_distinct_words)
        ranks = keras.datasets.imdb.get_word_index()
    words = sorted(ranks, key=ranks.get)[: config.num_distinct_words - FIRST_WORD]
    return train, test, dict(zip(words, itertools.count(FIRST_WORD)))


def prepare(reviews, vocabulary, config):
    """Bring reviews to one length: int32 token ids (reviews, max_sequence_length)."""
    length = config.max_sequence_length
    if config.num_bigrams:
        reviews = add_bigrams(reviews, vocabulary)
    if config.rarest:  # keep the highest ids (bigrams, rare words), in the text's order
        reviews = [np.array(review) for review in reviews]
        reviews = [x[x != OUT_OF_VOCABULARY] for x in reviews]
        reviews = [x[np.sort(np.argsort(x, kind="stable")[-length:])] for x in reviews]
    padding = "post" if config.masked else "pre"  # zeros after the text or before it
    return keras.utils.pad_sequences(reviews, length, padding=padding)  # cuts the start


# %% Model: Embedding -> LSTM -> Dense
# The embedding gives each word a vector, the LSTM reads the vectors one by one and
# keeps what matters in its state, Dense turns the state into a probability.
def build_model(config):
    """Return a keras.Sequential: token ids (batch, max_sequence_length) in, float32
    probabilities of a positive review (batch, 1) out. Raises UserError."""
    num_tokens = config.num_distinct_words + config.num_bigrams
    vectors = {"output_dim": config.embedding_output_dims, "mask_zero": config.masked}
    concat = config.pooling == "concat"
    options = {"units": config.lstm_units, "dropout": config.dropout}
    options |= {"return_sequences": concat, **config.lstm_options}
    model = keras.Sequential()
    model.add(keras.Input((config.max_sequence_length,), dtype="int32"))
    model.add(keras.layers.Embedding(num_tokens, **vectors, name="embedding"))
    with as_user_error("lstm_options" if config.lstm_options else "lstm_units"):
        # keras.layers.LSTM, but faster: see "The fast LSTM" below, or never.
        model.add(FastLSTM(**options, name="lstm"))
        if concat:
            model.add(ConcatPooling(name="pooling"))
        if len(model.output_shape) != 2:
            raise ValueError("Dense needs one vector a review, and no more")
    if config.dropout:
        model.add(keras.layers.Dropout(config.dropout))
    model.add(keras.layers.Dense(1, activation="sigmoid", name="dense"))
    return model


# %% Training
def compile_model(model, config):
    """Give the model optimizer, loss and metrics, and try them; raises UserError."""
    with as_user_error("optimizer"):
        optimizer = keras.optimizers.get(config.optimizer)
        if config.learning_rate is not None:
            optimizer.learning_rate = config.learning_rate
    model.compile(optimizer, config.loss_function, metrics=[*config.additional_metrics])
    labels = np.array([0, 1])
    good, bad = tf.constant([[[0.1], [0.9]], [[0.9], [0.1]]])
    with as_user_error("loss_function"):
        right, wrong = (model.compute_loss(None, labels, p) for p in (good, bad))
        if not right < wrong:
            raise ValueError("it does not prefer good probabilities to bad ones")
    with as_user_error("additional_metrics"):
        model.compute_metrics(None, labels, good)
    model.reset_metrics()


def train(model, x, y, size, config):
    """Fit on the first `size` reviews, watch the others; return Keras's History."""
    if config.cosine_decay:  # Loshchilov and Hutter 2017
        steps = math.ceil(size / config.batch_size) * config.number_of_epochs
        schedules, rate = keras.optimizers.schedules, model.optimizer.learning_rate
        model.optimizer.learning_rate = schedules.CosineDecay(float(rate), steps)
    model.optimizer.build(model.trainable_variables)  # else `fit` traces the step twice
    bar = config.verbosity_mode == 1 and (IN_NOTEBOOK or sys.stdout.isatty())
    model.steps_per_execution = 1 if bar else 8  # between two returns to Python
    times = [time.perf_counter()]

    def print_epoch(epoch, logs):  # plain lines for a file or a pipe, where no bar is
        times.append(time.perf_counter())
        values = [f"{name}: {value:.4f}" for name, value in logs.items()]
        epochs, seconds = config.number_of_epochs, times[-1] - times[-2]
        if config.verbosity_mode and not bar:
            done = f"Epoch {epoch + 1}/{epochs} - {seconds:.1f}s"
            print(done, *values, sep=" - ", flush=True)

    return model.fit(
        batches(x[:size], y[:size], config, training=True),
        validation_data=batches(x[size:], y[size:], config) if size < len(x) else None,
        epochs=config.number_of_epochs,
        verbose=int(bar),
        shuffle=False,  # `batches` shuffles
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=print_epoch)],
    )


def batches(x, y, config, training=False):
    """Return a tf.data.Dataset of batches of token ids and labels. If masked, reviews
    of like length share a batch, which is cut to its longest (length bucketing)."""
    steps = math.ceil(len(x) / (config.batch_size if training else 1000))
    cut = config.masked and not config.lstm_options.get("unroll")
    width = None if cut else x.shape[1]
    random = np.random.default_rng(config.seed)

    def generate():
        order = random.permutation(len(x))
        if config.masked:
            order = order[np.argsort(np.count_nonzero(x[order], 1), kind="stable")]
        groups = np.array_split(order, steps)  # of one size, give or take one
        for i in random.permutation(steps):
            tokens = x[groups[i]]
            if config.masked:
                real = tokens != PADDING
                if training:  # without some words: word dropout, Iyyer et al. 2015
                    real &= random.random(tokens.shape, "f4") >= config.word_dropout
                    real[:, 0] = True  # no review is left empty
                tokens = [row[kept] for row, kept in zip(tokens, real)]
                tokens = keras.utils.pad_sequences(tokens, width, padding="post")
            yield tokens, y[groups[i]]

    shapes = tf.TensorSpec((None, width), "int32"), tf.TensorSpec((None,), "int64")
    data = tf.data.Dataset.from_generator(generate, output_signature=shapes)
    options = tf.data.Options()
    options.autotune.enabled = False  # it can hold up the end of an epoch by seconds
    data = data.apply(tf.data.experimental.assert_cardinality(steps))
    return data.prefetch(8).with_options(options)


# %% The run, from the reviews to the result
def main(config):
    """Load, build, train, evaluate, print, keep; raises UserError before it trains.
    Returns (model, history, test_results): the trained keras.Sequential, Keras's
    History of the fit, and a dict of the loss and the metrics on the test reviews."""
    check_paths(config)
    if config.force_cpu and tf.config.list_physical_devices("GPU"):
        raise UserError("force_cpu: too late in this process; change its default")
    with as_user_error("seed"):
        keras.utils.set_random_seed(config.seed)
    model = build_model(config)
    compile_model(model, config)

    start = time.perf_counter()
    (x_train, y_train), (x_test, y_test), vocabulary = load_data(config)
    print(x_train.shape, x_test.shape, sep="\n")
    size = max(1, int(len(x_train) * (1 - config.validation_split)))
    if config.num_bigrams:
        vocabulary |= choose_bigrams(x_train[:size], y_train[:size], vocabulary, config)
    x_train = prepare(x_train, vocabulary, config)
    x_test = prepare(x_test, vocabulary, config)
    load_time = time.perf_counter() - start

    model.vocabulary, model.config = vocabulary, config
    with as_user_error("lstm_options"):
        kept_form(model)  # a model that could not be kept is not worth training
    model.summary()
    start = time.perf_counter()
    history = train(model, x_train, y_train, size, config)
    fit_time = time.perf_counter() - start
    start = time.perf_counter()
    test_data = batches(x_test, y_test, config)
    results = model.evaluate(test_data, verbose=0, return_dict=True)
    times = f"fit: {fit_time:.1f}s - evaluate: {time.perf_counter() - start:.1f}s"
    text = f"Test results - Loss: {results['loss']:.4f}"
    for name in [name for name in results if name != "loss"]:
        style = ".2%" if "accuracy" in name else ".4f"
        text += f" - {name.capitalize()}: {results[name]:{style}}"
    print(f"{text}\nTime - load: {load_time:.1f}s - {times}")
    try:
        keep(model, history, config)
    except OSError as error:  # a full disk; a notebook still gets the model
        if IS_SCRIPT:
            raise
        print(f"lstm.py: {error}")
    return model, history, results


# %% The story ends here. Helpers: what the cells above call, to be read when wanted
@contextlib.contextmanager
def as_user_error(text):
    """Turn any exception into a UserError: `text`, then what the exception says."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - Keras and files raise many kinds
        said = re.sub(r"\x1b\[\w+|\s+", " ", str(error)).strip()[:150]
        raise UserError(f"{text}: {said or type(error).__name__}") from None


def check_paths(config, names=("model_path", "plot")):
    """Raise UserError for what would fail, or overwrite the data, after training."""
    for name in names:
        path = str(getattr(config, name))
        folder = os.path.join(os.path.dirname(path) or ".", "")
        if path and (os.path.isdir(path) or not os.access(folder, os.W_OK)):
            raise UserError(f"{name}: {path} cannot be written; choose another place")
        if path and os.path.realpath(path) == os.path.realpath(config.data):
            raise UserError(f"{name}: {path} is the data; choose another name")
    if config.plot and not str(config.plot).lower().endswith((".png", ".pdf", ".svg")):
        raise UserError(f"plot: {config.plot} must end in .png, .pdf or .svg")
    if config.plot and not importlib.util.find_spec("matplotlib"):
        raise UserError("plot: needs Matplotlib; pip install matplotlib")


# %% Bigrams and concat pooling
# "good" speaks for a film and "not good" against it. So the bigrams (two neighbouring
# words) that tell most about the label become tokens (after Wang and Manning 2012).
def choose_bigrams(reviews, labels, vocabulary, config):
    """Return a dict from bigram, str such as "not good", to id: the num_bigrams that
    occur in positive reviews furthest from chance, roughly in standard deviations."""
    tokens = np.concatenate(reviews).astype(np.int64)
    positive = np.repeat(labels, [len(review) for review in reviews])[1:]
    first, second = tokens[:-1], tokens[1:]
    real = (first >= FIRST_WORD) & (second >= FIRST_WORD)  # START parts the reviews
    codes = first[real] * 2**32 + second[real]  # a pair of ids as one number
    codes, places, seen = np.unique(codes, return_inverse=True, return_counts=True)
    surprise = np.bincount(places, positive[real]) - seen * labels.mean()
    surprise = np.abs(surprise) / np.sqrt(seen + 1)
    best = codes[np.argsort(-surprise, kind="stable")[: config.num_bigrams]]
    words = ["", "", "", "", *vocabulary]  # by token id
    bigrams = (f"{words[code // 2**32]} {words[code % 2**32]}" for code in best)
    return dict(zip(bigrams, itertools.count(len(words))))


def add_bigrams(reviews, vocabulary):
    """Put each bigram of the vocabulary behind its second word, as one more token."""
    bigrams = [entry for entry in vocabulary if " " in entry]
    pairs = {tuple(map(vocabulary.get, b.split(" "))): vocabulary[b] for b in bigrams}
    longer = []
    for review in reviews:
        tokens = [START]
        for pair in itertools.pairwise(review):
            tokens += [pair[1], pairs[pair]] if pair in pairs else [pair[1]]
        longer.append(tokens)
    return longer


@keras.saving.register_keras_serializable("lstm")
class ConcatPooling(keras.layers.Layer):
    """Last, mean and maximum of states (batch, time, units): Howard and Ruder 2018.
    It reads nothing over the padding, where cuDNN's states differ from Keras's."""

    def call(self, states, mask=None):
        ops = keras.ops
        mask = ops.ones_like(states[:, :, 0]) if mask is None else mask
        real = ops.cast(mask, states.dtype)[:, :, None]  # 1 for a word, 0 for padding
        ends = real - ops.pad(real[:, 1:], [(0, 0), (0, 1), (0, 0)])  # 1 for the last
        last, mean = ops.sum(states * ends, 1), ops.sum(states * real, 1)
        highest = ops.max(states - 1e4 * (1 - real), 1)
        return ops.concatenate([last, mean / ops.sum(real, 1), highest], 1)

    def compute_mask(self, states, mask=None):
        return None


# %% The fast LSTM
# It is keras.layers.LSTM, same weights, same numbers; you can go on without reading it.
# On a CPU, Keras runs twenty small operations per time step. TensorFlow's BlockLSTM
# runs them all, for all time steps, in one: training takes half of the time.
def lstm_states(inputs, h, c, cell):
    """Run the LSTM (Hochreiter and Schmidhuber 1997, forget gate: Gers 2000) of a Keras
    cell over inputs x (batch, time, features), from states h and c (batch, units):
    i, f, o = sigmoid(x @ W + h @ U + b), each gate with its own W, U and b; new = tanh
    of such a sum; c = f * c + i * new (forget some, add some); h = o * tanh(c).
    Returns h after each time step, (time, batch, units)."""
    weights = tf.concat([cell.kernel, cell.recurrent_kernel, cell.bias[None]], 0)
    i, f, new, o = tf.split(weights, 4, axis=1)  # the order of the gates in Keras
    weights = tf.concat([i, new, f, o], 1)  # and in BlockLSTM
    given = {"cs_prev": c, "h_prev": h, "w": weights[:-1], "b": weights[-1]}
    off = dict.fromkeys(["wci", "wcf", "wco"], tf.zeros_like(h[0]))  # no peepholes
    off |= {"forget_bias": 0.0, "cell_clip": -1.0}  # Keras's bias has it; no clipping
    inputs = tf.transpose(inputs, (1, 0, 2))
    steps = tf.shape(inputs, "int64")[0]
    return tf.raw_ops.BlockLSTM(seq_len_max=steps, x=inputs, **given, **off).h


DEFAULTS = keras.layers.LSTM(1, name="lstm", dtype="float32").get_config()
ANY_VALUE = {"name", "trainable", "units", "return_sequences", "dropout", "seed"}
kinds = ("initializer", "regularizer", "constraint")
ANY_VALUE |= {name for name in DEFAULTS if name.endswith(kinds)}


@keras.saving.register_keras_serializable("lstm")
class FastLSTM(keras.layers.LSTM):
    """keras.layers.LSTM, faster on a CPU; a mask must be right-padded. On a GPU, where
    Keras has cuDNN, and for any option but ANY_VALUE, its loop is Keras's own."""

    def inner_loop(self, sequences, initial_state, mask, training=False):
        # Keras calls this to run over time. What BlockLSTM lacks is left to Keras.
        changed = {n for n, v in self.get_config().items() if v != DEFAULTS.get(n)}
        if changed - ANY_VALUE or tf.config.list_logical_devices("GPU"):
            return super().inner_loop(sequences, initial_state, mask, training)
        if training and self.dropout:  # the same numbers at every time step
            sequences *= self.cell.get_dropout_mask(sequences[:, 0])[:, None]
        n, given = tf.shape(sequences)[0], (sequences, *initial_state)
        halves = [x[: (n + 1) // 2] for x in given], [x[n // 2 :] for x in given]
        first, second = (lstm_states(*half, self.cell) for half in halves)  # at once
        states = tf.concat([first, second[:, n % 2 :]], 1)  # one came twice if n is odd
        last, states = states[-1], tf.transpose(states, (1, 0, 2))
        if mask is not None:
            both = mask[:, 1:] & mask[:, :-1]
            tf.debugging.assert_equal(mask[:, 1:], both, "mask is not right-padded")
            states = tf.concat([initial_state[0][:, None], states], 1)  # 0: no word yet
            t = tf.cumsum(tf.cast(mask, "int32"), 1)  # words so far, fixed over padding
            states = tf.gather(states, t, batch_dims=1)  # so the last state is repeated
            last = states[:, -1]
        return last, states, initial_state  # nobody reads the last of these


# %% After training: keep the model, use it, look at it
def keep(model, history, config):
    """Write the model, whole or not at all, and then the curves."""
    path = str(config.model_path)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path) or ".") as folder:
        kept_form(model).save(os.path.join(folder, "whole.keras"))
        os.replace(os.path.join(folder, "whole.keras"), path)
    flag = "" if path == Config.model_path else f"--model-path {shlex.quote(path)} "
    example = f'python lstm.py {flag}--predict "A wonderful film"'
    print(f"Model kept in {path} - try: {example}")
    if config.plot:
        plot_training(history, config.plot)


def kept_form(model):
    """Return a twin of a model, of Keras's own layers, that takes words: Keras
    loads it without this file. Its input is str (batch, time), [START] and the words,
    "" as padding; the name of the input keeps `config.rarest` for `load`."""
    embedding = keras.layers.Embedding(**model.get_layer("embedding").get_config())
    lstm = keras.layers.LSTM(**model.get_layer("lstm").get_config())
    name = "rarest_words" if model.config.rarest else "last_words"
    words = keras.Input(model.input_shape[1:], dtype="string", name=name)
    known = {"vocabulary": ["[START]", "[UNUSED]", *model.vocabulary], "mask_token": ""}
    tokens = keras.layers.StringLookup(**known, name="lookup")(words)
    states = lstm(embedding(tokens))
    if lstm.return_sequences:  # the pooling's Keras parts, not our layer
        states = ConcatPooling().call(states, embedding.compute_mask(tokens))
    twin = keras.Model(words, model.get_layer("dense")(states))
    weights = model.get_weights()
    # StringLookup gives [UNK] id 1 and [START] id 2, here it is the reverse.
    weights[0][[OUT_OF_VOCABULARY, START]] = weights[0][[START, OUT_OF_VOCABULARY]]
    twin.set_weights(weights)
    return twin


def load(path):
    """Read a model that training kept; raises UserError if it is none."""
    with as_user_error(f"model_path: {path} is no model of this script; train one"):
        model = keras.saving.load_model(path, compile=False)
        words = model.get_layer("lookup").get_vocabulary()[FIRST_WORD:]
        model.vocabulary = dict(zip(words, itertools.count(FIRST_WORD)))
        reads = {"masked": model.get_layer("embedding").mask_zero}
        reads |= {"rarest": model.input.name == "rarest_words"}
        reads |= {"num_bigrams": sum(" " in word for word in words)}
        model.config = Config(max_sequence_length=model.input_shape[1], **reads)
    return model


def predict(texts, model):
    """Return the probability that each of `texts`, a list of str or one, is positive:
    float32 of shape (texts,). model is as `main` returns it or `load` reads it."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        return np.zeros(0, "float32")
    reviews = [encode(text, model.vocabulary) for text in texts]
    tokens = prepare(reviews, model.vocabulary, model.config)
    if not isinstance(model, keras.Sequential):  # a kept form, which takes words
        words = ["", "[START]", "[UNK]", "[UNUSED]", *model.vocabulary]
        tokens = tf.constant(np.array(words, object)[tokens])
    return model.predict(tokens, batch_size=1000, verbose=0)[:, 0]


def encode(text, vocabulary):
    """Turn a text into an int32 array of token ids: START, then its words'."""
    ids = [vocabulary.get(w, OUT_OF_VOCABULARY) for w in split_words(text, vocabulary)]
    return np.array([START, *ids], "int32")


def split_words(text, known=()):
    """Split a text as the IMDB reviews were: lower case, at ASCII's punctuation but '.
    A word not `known` is split again, at all but letters, marks, digits and '."""
    words = []
    for word in re.split(r"[\t\n\r !-&(-/:-@\[-`{-~]", text.lower()):
        if word not in known:
            word = word.replace("\u2019", "'")  # the apostrophe of phones and editors
            kept = {c for c in word if c == "'" or unicodedata.category(c)[0] in "LMN"}
            word = "".join(c if c in kept else " " for c in word)
        words += [word] if word in known else [w.strip("'") for w in word.split()]
    return [word for word in words if word]


def classify(texts, config):
    """Print a line for each text: the text shortened, its label, its probability."""

    def standard_input():  # each list: lines that have arrived, without a wait
        rest = b""
        while chunk := sys.stdin.buffer.read1(2**20):
            *lines, rest = (rest + chunk).split(b"\n")
            for i in range(0, len(lines), 1000):
                yield [line.decode(errors="replace") for line in lines[i : i + 1000]]
        yield [rest.decode(errors="replace")] if rest else []

    check_paths(config, ["plot"])
    model, shown = load(config.model_path), []
    for group in standard_input() if texts == ["-"] else [texts]:
        for text, probability in zip(group, predict(group, model)):
            text = "".join(c if c.isprintable() else " " for c in text[:200]).strip()
            text = text if len(text) <= 50 else text[:47] + "..."
            label = "positive" if probability > 0.5 else "negative"
            print(f"{text} - {label} - {probability:.4f}", flush=True)
        shown = (shown + group)[:6]
    if config.plot and shown:
        plot_reading(shown, model, config.plot)


def plot_reading(texts, model, path=""):
    """Draw how the probability of a positive review changes, word by word, to `path`.
    texts are a str or up to six; of each all words are read, and the last 60 drawn.
    The words that move it most are marked, those that model does not know are grey."""
    from matplotlib import pyplot  # it takes a second, so only here

    texts = [texts] if isinstance(texts, str) else texts[:6]
    warnings.filterwarnings("ignore", "Glyph")  # a font without all of Unicode
    figure = pyplot.figure(figsize=(11, 3.5 * len(texts)), layout="constrained")
    for axis, text in zip(figure.subplots(len(texts), squeeze=False).flat, texts):
        words = text.encode(errors="replace").decode().split()
        shown = range(max(0, len(words) - 60), len(words) + 1)
        curve = predict([" ".join(words[:n]) for n in shown], model)
        axis.plot(curve, "ko-", ms=3)
        axis.axhline(0.5, color="grey", ls="--")
        axis.set(ylim=(-0.05, 1.1), ylabel="positive", xlim=(-0.5, len(shown) - 0.5))
        ticks = ["", *(words[n][:15] for n in shown[:-1])]
        axis.set_xticks(range(len(shown)), ticks, rotation=60, ha="right")
        for tick, word in zip(axis.get_xticklabels()[1:], words[shown[0] :]):
            unknown = OUT_OF_VOCABULARY in encode(word, model.vocabulary)
            tick.set(parse_math=False, color="darkgrey" if unknown else "black")
        moves = np.diff(curve)
        for n in np.argsort(-np.abs(moves))[: sum(np.abs(moves) > 0.02)][:5]:
            axis.text(n + 1, curve[n + 1] + 0.03, f"{moves[n]:+.2f}", ha="center")
    if path:
        figure.savefig(path, dpi=150)


def plot_training(history, path):
    """Draw the curves of the training, loss and metrics of each epoch, to `path`."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    for name, curve in history.history.items():
        axis.plot(range(1, len(curve) + 1), curve, "o-", label=name)
    axis.set_xlabel("epoch")
    axis.legend()
    figure.savefig(path, dpi=150)


# %% Your own reviews
def read_csv(config):
    """Read the CSV file config.data: columns text, label (0, 1, negative or positive),
    perhaps split (train, test); without, a fifth of each label is held out, by chance.
    Returns what `load_data` does; raises UserError."""
    path, form = config.data, {"encoding": "utf-8-sig", "newline": ""}
    texts, labels, splits, parts = [], [], [], []
    known = {"0": 0, "negative": 0, "1": 1, "positive": 1}
    with as_user_error(f"data: {path}"), open(path, **form) as file:
        rows = csv.DictReader(file, strict=True)
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or []]
        if not {"text", "label"} <= set(rows.fieldnames):
            raise ValueError("the first line must name the columns text and label")
        for row in rows:  # a None in it is a column too many or too few
            label = known.get((row["label"] or "").strip().lower())
            split = (row.get("split", "train") or "").strip().lower()
            if None in (*row, *row.values(), label) or split not in ("train", "test"):
                needs = "text (in quotes), label (0, 1), and split (train, test) if any"
                raise ValueError(f"line {rows.line_num}: needs {needs}")
            texts.append(row["text"])
            labels.append(label)
            splits.append(split)
    labels, held_out = np.array(labels), np.array(splits) == "test"
    random = np.random.default_rng(config.seed)
    for label in (0, 1) if "split" not in rows.fieldnames else ():
        order = random.permutation(np.flatnonzero(labels == label))
        held_out[order[: round(len(order) / 5)]] = True
    train = np.flatnonzero(~held_out)
    counts = Counter(word for row in train for word in split_words(texts[row]))
    words = [w for w, _ in counts.most_common(config.num_distinct_words - FIRST_WORD)]
    vocabulary = dict(zip(words, itertools.count(FIRST_WORD)))
    for part in (~held_out, held_out):
        order = random.permutation(np.flatnonzero(part))  # its end is for validation
        if len(set(labels[order])) < 2:
            raise UserError(f"data: {path}: training and test need both labels each")
        reviews = (encode(texts[row], vocabulary) for row in order)
        parts.append((np.fromiter(reviews, object, len(order)), labels[order]))
    return *parts, vocabulary


# %% Start: the script and the notebook alike
if __name__ == "__main__":
    try:
        if texts is None:
            model, history, test_results = main(config)
        else:
            classify(texts, config)
    except (UserError, OSError) as error:
        if not IS_SCRIPT:
            raise
        print(f"lstm.py: {error}", file=sys.stderr)
        sys.exit(2)

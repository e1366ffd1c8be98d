"""An LSTM that learns whether a film review is positive or negative.

`python lstm.py` reads the 50,000 IMDB reviews (17 MB, downloaded once), trains
Embedding -> LSTM -> Dense for five epochs, reports the accuracy on 25,000 reviews it
never saw, and keeps the model for `python lstm.py --predict "A wonderful film"`:

    --preset article    87.0 +- 0.4%, the values of Christian Versloot's article
    --preset tuned      89.9 +- 0.2%, the same words, put to better use
    --preset large      91.1 +- 0.1%, more words, and bigrams

Read it from the top to `main`; helpers follow. `build_model` is yours to change.
"""

# %% Python's tools; TensorFlow follows once the CPU switch is set
import argparse
import contextlib
import csv
import functools
import gc
import json
import linecache
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import unicodedata
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from itertools import count, pairwise

import numpy as np


class UserError(Exception):
    """A mistake of the user's: one line that names the field or the file at fault."""

    # What IPython shows in place of a traceback.
    _render_traceback_ = lambda self: [f"lstm.py: {self}"]


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
    naive_bayes: float = 0.0  # how far each word starts towards its commoner label
    learning_rate: float = None  # in place of the optimizer's own
    cosine_decay: bool = False  # let the learning rate fall to 0 along a cosine
    patience: int = 0  # epochs to wait for a better val_loss, then stop; 0 is never
    lstm_options: dict = field(default_factory=dict)  # more of keras.layers.LSTM
    seed: int = 1  # same seed, same machine, same result
    force_cpu: bool = False  # hide a GPU that is slower; set before the import
    data: str = ""  # a CSV file with columns text and label, in place of IMDB
    model_path: str = "lstm.keras"  # where the trained model is kept
    plot: str = ""  # a picture to draw of the training, or of what --predict reads

    def __post_init__(self):
        least = dict.fromkeys(["verbosity_mode", "num_bigrams", "seed", "patience"], 0)
        least["num_distinct_words"] = 4
        for f in fields(self):
            value, lowest = getattr(self, f.name), least.get(f.name, 1)
            if f.type is int and value < lowest:
                raise UserError(f"{f.name}: {value} is below {lowest}")
            if f.type is float and f.name != "learning_rate" and not 0 <= value < 1:
                raise UserError(f"{f.name}: {value} is not at least 0 and below 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < np.inf:
            raise UserError(f"learning_rate: {self.learning_rate} is not above 0")
        if self.pooling not in ("last", "concat"):
            raise UserError(f"pooling: {self.pooling!r} is neither last nor concat")
        if self.word_dropout and not self.masked:
            raise UserError("word_dropout: works on masked reviews only; add masked")
        if self.patience and not self.validation_split:
            raise UserError("patience: needs held-out reviews; add validation_split")
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
    "learning_rate": 0.01,  # 0.2 points
    "cosine_decay": True,  # 0.2 points
    "embedding_output_dims": 32,  # 0.1 points
    "naive_bayes": 0.2,  # 0.1 points
    "validation_split": 0.0,  # a quarter more reviews to learn from
}
PRESETS["large"] = PRESETS["tuned"] | {
    "num_distinct_words": 20000,  # 0.6 points
    "num_bigrams": 20000,  # 1.7 points; such as "not good"
    "max_sequence_length": 400,  # 0.1 points; bigrams are tokens, too
    "naive_bayes": 0.1,  # 0.4 points, and with it
    "number_of_epochs": 3,  # are as good as 5
    "dropout": 0.7,  # 0 points, 4% less loss
    "word_dropout": 0.6,  # 0 points, 2% less loss in cross-validation
    "lstm_units": 32,  # 0.1 points
}


# %% The command line: every field is a flag, and its comment is the flag's help
THIS_FILE = sys._getframe().f_code.co_filename  # what Python is running


def parse_command_line(arguments):
    """Return the Config that `arguments` ask for, and the texts to predict or None."""
    # Suppressed defaults: only what was given overrides a preset.
    form = {"allow_abbrev": False, "argument_default": argparse.SUPPRESS}
    usage = "python lstm.py [--FLAG VALUE ...] [--predict TEXT ...]"
    parser = argparse.ArgumentParser(usage=usage, **form)
    kinds = {bool: {"action": argparse.BooleanOptionalAction}}
    kinds[tuple] = {"nargs": "*", "metavar": "NAME"}
    kinds[dict] = {"nargs": "*", "metavar": "NAME=VALUE"}
    source = "".join(linecache.getlines(THIS_FILE))  # empty if there is none
    comments = dict(re.findall(r"\n    (\w+): .*  # (.+)", source))
    for f in fields(Config):
        kind = kinds.get(f.type, {"type": f.type, "metavar": f.type.__name__.upper()})
        text = f"{comments.get(f.name, '')} ({getattr(Config(), f.name)})"
        flags = {f"--{f.name}", f"--{f.name.replace('_', '-')}"}
        parser.add_argument(*sorted(flags), help=text, **kind)
    text = "which values to start from (article)"
    parser.add_argument("--preset", choices=PRESETS, default="article", help=text)
    text = "texts to classify with the kept model; - for the lines of standard input"
    parser.add_argument("--predict", nargs="+", metavar="TEXT", default=None, help=text)
    given = vars(parser.parse_args(arguments))
    texts, preset = given.pop("predict"), PRESETS[given.pop("preset")]
    options = dict(text.partition("=")[::2] for text in given.get("lstm_options", []))
    for name, value in options.items():
        with contextlib.suppress(ValueError):  # a number, true or false; else a name
            options[name] = json.loads(value.lower())
    try:
        return Config(**preset | given | {"lstm_options": options}), texts
    except UserError as error:
        parser.error(str(error))  # exits with code 2, as for any wrong flag


IN_NOTEBOOK, INTERACTIVE = "ipykernel" in sys.modules, hasattr(sys, "ps1")
# It is a script if Python was started with it; else sys.argv is somebody else's.
STARTED, HERE = map(os.path.realpath, ["".join(sys.argv[:1]), THIS_FILE])
IS_SCRIPT = __name__ == "__main__" and STARTED == HERE
config, texts = Config(), None  # texts to classify; None is to train
if IS_SCRIPT:
    config, texts = parse_command_line(sys.argv[1:])
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # enough for so small a model
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # ? for what a terminal cannot show
    for name in {"SIGINT", "SIGPIPE"} & set(() if INTERACTIVE else dir(signal)):
        signal.signal(getattr(signal, name), signal.SIG_DFL)  # ends it like any tool


# %% The CPU switch, and TensorFlow
# TensorFlow looks for a GPU when it is imported, so the switch has to come before.
if config.force_cpu:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can run on others; this file cannot
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # keeps memory to use again
with contextlib.ExitStack() as quiet:  # hide notes that C++ code writes at any level
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "3":
        with contextlib.suppress(OSError):
            quiet.callback(os.dup2, os.dup(2), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import keras
    import tensorflow as tf
tf.get_logger().setLevel("ERROR")  # else a process that builds three models is warned


# %% Data: 25,000 reviews to train on and 25,000 to test with
# A review is a list of token ids: four are special, then come the words by frequency.
SPECIAL = "", "[UNK]", "[START]", "[UNUSED]"  # "" is padding
PADDING, OUT_OF_VOCABULARY, START, UNUSED, FIRST_WORD = range(5)


def load_data(config):
    """Read IMDB, downloaded the first time, or config.data; raises UserError.
    Returns (x_train, y_train), (x_test, y_test), vocabulary: object arrays of reviews,
    int64 labels, 1 for positive, and a dict from token to id."""
    if config.data:
        return read_csv(config)
    imdb, size = keras.datasets.imdb, config.num_distinct_words
    ids = {"start_char": START, "oov_char": OUT_OF_VOCABULARY, "index_from": UNUSED}
    gc.disable()  # else Python searches 50,000 lists for garbage while they load
    try:
        with as_user_error("IMDB: check the network, or empty ~/.keras/datasets"):
            parts, ranks = imdb.load_data(num_words=size, **ids), imdb.get_word_index()
    finally:
        gc.enable()
    words = sorted(ranks, key=ranks.get)[: size - FIRST_WORD]
    return *parts, dict(zip([*SPECIAL, *words], count()))


def prepare(reviews, vocabulary, config):
    """Bring reviews to one length: int32 token ids (reviews, max_sequence_length)."""
    length = config.max_sequence_length
    if config.num_bigrams:
        reviews = add_bigrams(reviews, vocabulary)
    if config.rarest:  # keep the highest ids (bigrams, rare words), in the text's order
        reviews = [x[x != OUT_OF_VOCABULARY] for x in map(np.array, reviews)]
        reviews = [x[np.sort(np.argsort(x, kind="stable")[-length:])] for x in reviews]
    padding = "post" if config.masked else "pre"  # zeros after the text or before it
    return keras.utils.pad_sequences(reviews, length, padding=padding)  # cuts the start


# %% Model: Embedding -> LSTM -> Dense
# The embedding gives each word a vector, the LSTM reads the vectors one by one and
# keeps what matters in its state, Dense turns the state into a probability.
def build_model(config):
    """Return a keras.Sequential from int32 token ids (batch, max_sequence_length) to
    float32 probabilities of a positive review (batch, 1). It is yours to change."""
    num_tokens = config.num_distinct_words + config.num_bigrams
    dims, concat = config.embedding_output_dims, config.pooling == "concat"
    options = {"units": config.lstm_units, "dropout": config.dropout}
    options |= {"return_sequences": concat} | config.lstm_options
    model = keras.Sequential()
    model.add(keras.Input((config.max_sequence_length,), dtype="int32"))
    model.add(keras.layers.Embedding(num_tokens, dims, mask_zero=config.masked))
    model.add(keras.layers.LSTM(**options))
    if concat:
        model.add(ConcatPooling())
    if config.dropout:
        model.add(keras.layers.Dropout(config.dropout))
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    return model


# %% Training
def compile_model(model, config):
    """Give the model optimizer, loss and metrics, and try them; raises UserError."""
    with as_user_error("optimizer"):
        optimizer = keras.optimizers.get(config.optimizer)
        if config.learning_rate is not None:
            optimizer.learning_rate = config.learning_rate
    # A word that a batch holds twice has two gradients, to be added up. Keras's Adam on
    # TensorFlow squares them one by one before it does; turned into a tensor they are.
    apply = optimizer.apply
    optimizer.apply = lambda gradients, variables=None: apply(
        [g if g is None else tf.convert_to_tensor(g) for g in gradients], variables
    )
    model.compile(optimizer, config.loss_function, metrics=[*config.additional_metrics])
    labels, good = np.array([0, 1]), tf.constant([[0.1], [0.9]])
    with as_user_error("loss_function"):
        right, wrong = (model.compute_loss(None, labels, p) for p in (good, 1 - good))
        if not right < wrong:
            raise ValueError("it does not prefer good probabilities to bad ones")
    with as_user_error("additional_metrics"):
        model.compute_metrics(None, labels, good)
    model.reset_metrics()


def train(model, data, held_out, config):
    """Fit on the batches of `data`, watch `held_out`; return Keras's History."""
    if config.cosine_decay:  # Loshchilov and Hutter 2017
        steps = int(data.cardinality()) * config.number_of_epochs
        schedules, rate = keras.optimizers.schedules, model.optimizer.learning_rate
        model.optimizer.learning_rate = schedules.CosineDecay(float(rate), steps)
    model.optimizer.build(model.trainable_variables)  # else `fit` traces the step twice
    terminal = getattr(sys.stdout, "isatty", bool)()
    bar = config.verbosity_mode == 1 and (IN_NOTEBOOK or terminal)
    model.steps_per_execution = 1 if bar else 8  # between two returns to Python
    times, epochs = [time.perf_counter()], config.number_of_epochs

    def print_epoch(epoch, logs):  # plain lines for a file or a pipe, where no bar is
        times.append(time.perf_counter())
        done = f"Epoch {epoch + 1}/{epochs} - {times[-1] - times[-2]:.1f}s"
        values = [f"{name}: {value:.4f}" for name, value in logs.items()]
        if config.verbosity_mode and not bar:
            print(done, *values, sep=" - ", flush=True)

    kinds = keras.callbacks
    calls = [kinds.TerminateOnNaN(), kinds.LambdaCallback(on_epoch_end=print_epoch)]
    if config.patience:
        best = {"patience": config.patience, "restore_best_weights": True}
        calls.append(kinds.EarlyStopping("val_loss", mode="min", **best))
    how = {"epochs": epochs, "callbacks": calls, "verbose": int(bar), "shuffle": False}
    try:
        model.fit(data, validation_data=held_out, **how)
    except KeyboardInterrupt:
        if not INTERACTIVE:
            raise
        print("\nInterrupted: going on with what was learnt so far")
    return model.history


# %% The run, from the reviews to the result
def main(config):
    """Load, build, train, evaluate, print, keep; raises UserError before it trains.
    Returns (model, history, test_results): the trained keras.Model, which takes words
    (see `with_lookup`), Keras's History, and a dict of the test's loss and metrics."""
    check_paths(config)
    if config.force_cpu and tf.config.list_physical_devices("GPU"):
        raise UserError("force_cpu: too late in this process; change its default")
    keras.utils.set_random_seed(config.seed % 2**32)
    with as_user_error("lstm_options" if config.lstm_options else "build_model"):
        model = build_model(config)
        masked, cut = check_model(model, config)
    config = replace(config, masked=masked)  # as the model has it
    compile_model(model, config)

    times = [time.perf_counter()]
    (x_train, y_train), (x_test, y_test), vocabulary = load_data(config)
    print(x_train.shape, x_test.shape, sep="\n")
    size = max(1, int(len(x_train) * (1 - config.validation_split)))
    if config.num_bigrams:
        vocabulary |= choose_bigrams(x_train[:size], y_train[:size], vocabulary, config)
    x_train, x_test = (prepare(x, vocabulary, config) for x in (x_train, x_test))
    if config.naive_bayes:
        start_at_naive_bayes(model, x_train[:size], y_train[:size], config)
    times.append(time.perf_counter())

    use_fast_loop(model)
    word_model = with_lookup(model, vocabulary, config)  # the same layers
    model.summary()
    data = batches(x_train[:size], y_train[:size], config, cut, training=True)
    held_out = batches(x_train[size:], y_train[size:], config, cut)
    history = train(model, data, held_out if size < len(x_train) else None, config)
    times.append(time.perf_counter())
    data = batches(x_test, y_test, config, cut)
    results = model.evaluate(data, verbose=0, return_dict=True)
    times.append(time.perf_counter())
    text = f"Test results - Loss: {results['loss']:.4f}"
    for name in [name for name in results if name != "loss"]:
        style = ".2%" if "accuracy" in name else ".4f"
        text += f" - {name.capitalize()}: {results[name]:{style}}"
    device = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    spent = "load: {:.1f}s - fit: {:.1f}s - evaluate: {:.1f}s".format(*np.diff(times))
    print(f"{text}\nTime - {spent} - on {device}")
    try:
        keep(word_model, history, results, config)
    except (OSError, ArithmeticError) as error:  # a notebook still gets the model
        (sys.exit if IS_SCRIPT else print)(f"lstm.py: {error}")
    return word_model, history, results


# %% The story ends here. Helpers: what the cells above call, to be read when wanted
@contextlib.contextmanager
def as_user_error(text):
    """Turn any exception into a UserError: `text`, then what the exception says."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - Keras and files raise many kinds
        said = re.sub(r"\x1b\[\w+|\s+", " ", str(error)).strip()[:200]
        raise UserError(f"{text}: {said or type(error).__name__}") from None


def check_paths(config, names=("model_path", "plot")):
    """Raise UserError for a path that cannot be written, or a picture not drawn."""
    for name in names:
        path = str(getattr(config, name))
        folder = os.path.join(os.path.dirname(path) or ".", "")
        if os.path.isdir(path) or not os.access(folder, os.W_OK):
            raise UserError(f"{name}: {path} cannot be written; choose another place")
        if path and os.path.realpath(path) == os.path.realpath(config.data):
            raise UserError(f"{name}: {path} is the data; choose another name")
    if config.plot:
        with as_user_error("plot: pip install matplotlib, and end the name in .png"):
            from matplotlib.figure import Figure

            Figure().savefig(os.devnull, format=str(config.plot).rpartition(".")[2])


def check_model(model, config):
    """Raise ValueError for a model that cannot be trained, kept and used. Return
    whether it skips padding, and whether batches may be cut to their longest review."""
    if not isinstance(model, keras.Sequential):
        raise TypeError("must return a keras.Sequential")
    if not model.built:  # it has no Input
        model.build((None, config.max_sequence_length))
    linear = getattr(model.layers[-1], "activation", None) is keras.activations.linear
    if linear or model.output_shape != (None, 1):
        raise ValueError("must end in one probability: Dense(1, activation='sigmoid')")
    saved = model.get_config()
    keras.Sequential.from_config(saved)  # what is kept must load again
    masked = any(getattr(layer, "mask_zero", False) for layer in model.layers)
    options = [layer["config"] for layer in saved["layers"]]
    if masked and any(o.get("go_backwards") and o["return_sequences"] for o in options):
        raise ValueError("masked go_backwards; Keras turns the states but not the mask")
    fixed = any(option.get("unroll") for option in options)
    cut = not fixed and all(layer.supports_masking for layer in model.layers)
    return masked, masked and cut


def batches(x, y, config, cut, training=False):
    """Return a tf.data.Dataset of batches of token ids and labels. If masked, reviews
    of like length share a batch, cut to its longest if it may be (length bucketing)."""
    steps = -(-len(x) // (config.batch_size if training else 1000))
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


# %% Bigrams, naive Bayes and concat pooling
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
    order = np.argsort(-np.abs(surprise) / np.sqrt(seen + 1), kind="stable")
    pairs, words = codes[order[: config.num_bigrams]], [*vocabulary]  # by token id
    bigrams = (f"{words[pair // 2**32]} {words[pair % 2**32]}" for pair in pairs)
    return dict(zip(bigrams, count(len(words))))


def add_bigrams(reviews, vocabulary):
    """Put each bigram of the vocabulary behind its second word, as one more token."""
    bigrams = [token for token in vocabulary if " " in token]
    pairs = {tuple(map(vocabulary.get, b.split(" "))): vocabulary[b] for b in bigrams}
    longer = []
    for review in reviews:
        longer.append([START])
        for pair in pairwise(review):
            longer[-1] += [pair[1], pairs[pair]] if pair in pairs else [pair[1]]
    return longer


def start_at_naive_bayes(model, x, y, config):
    """Add to each token's vector how much commoner it is in positive reviews: the log
    ratio of naive Bayes (Wang and Manning 2012), times naive_bayes, with a random sign
    for each dimension (as initial weights: Li et al. 2016)."""
    with as_user_error("naive_bayes: needs an Embedding as the first layer"):
        vectors = model.layers[0].embeddings
    size, dims = vectors.shape
    seen = np.ones((2, size))  # how many reviews of each label hold a token, plus one
    for tokens, label in zip(x, y):
        seen[label, tokens] += 1  # one, however often it occurs
    ratio = np.log(seen[1] / seen[0] * np.sum(y == 0) / np.sum(y == 1))
    signs = np.random.default_rng(config.seed).choice([-1, 1], dims)
    vectors.assign_add(config.naive_bayes * np.outer(ratio, signs))


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

    compute_mask = lambda self, states, mask=None: None  # time is gone


# %% The fast LSTM
# The layers stay Keras's, and so do their numbers; you can go on without reading this.
# On a CPU, Keras runs twenty small operations per time step. TensorFlow's BlockLSTM is
# all of them, for all time steps, in one: training takes a third of the time.
FAST = {"activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
FAST |= dict.fromkeys(["recurrent_dropout", "unroll", "stateful", "return_state"], 0)
FAST["dtype"] = "float32"


def use_fast_loop(model):
    """Let `fast_loop` run each keras.layers.LSTM of a model, also in Bidirectional, if
    that is exact and faster: not on a GPU, as Keras has cuDNN, and not a large one."""
    for layer in () if tf.config.list_logical_devices("GPU") else model.layers:
        for way in ("forward_layer", "backward_layer"):
            lstm = getattr(layer, way, layer)
            if type(lstm) is keras.layers.LSTM and lstm.count_params() < 40_000:
                options = lstm.get_config() | {"dtype": lstm.dtype_policy.name}
                # Keras's last state is then zeros for every review with padding.
                zeros = lstm.zero_output_for_mask and not lstm.return_sequences
                if FAST.items() <= options.items() and not zeros:
                    lstm.inner_loop = functools.partial(fast_loop, lstm)


def fast_loop(layer, sequences, initial_state, mask, training=False):
    """Compute what keras.layers.LSTM.inner_loop does; a mask must be right-padded."""
    batch, steps = tf.unstack(tf.shape(sequences)[:2])
    if training and layer.dropout:  # the same numbers at every time step
        sequences *= layer.cell.get_dropout_mask(sequences[:, 0])[:, None]
    mask = tf.ones([batch, steps], tf.bool) if mask is None else mask
    lengths = tf.math.count_nonzero(mask, 1, dtype="int32")
    real = tf.sequence_mask(lengths, steps)
    tf.debugging.assert_equal(mask, real, "mask is not right-padded")
    if layer.go_backwards:  # from the last word to the first
        sequences = tf.reverse_sequence(sequences, lengths, 1)
    parts = sequences, lengths, *initial_state
    halves = zip(*(tf.split(x, [batch // 2, batch - batch // 2]) for x in parts))
    results = zip(*(lstm_states(layer.cell, *half) for half in halves))  # at once
    last, states = (tf.concat(halves, 0) for halves in results)
    # Over padding, the last state is repeated, or zeros follow; backwards, zeros lead.
    zeros = layer.zero_output_for_mask or layer.go_backwards
    states = tf.where(mask[:, :, None], states, 0.0 if zeros else last[:, None])
    if layer.go_backwards:
        states = tf.reverse(tf.reverse_sequence(states, lengths, 1), [1])
    return last, states, initial_state  # nobody reads the last of these


def lstm_states(cell, inputs, lengths, h, c):
    """Run the LSTM (Hochreiter and Schmidhuber 1997, forget gate: Gers 2000) of a Keras
    cell over inputs x (batch, time, features), from states h and c (batch, units):
    i, f, o = sigmoid(x @ W + h @ U + b), each gate with its own W, U and b; new = tanh
    of such a sum; c = f * c + i * new (forget some, add some); h = o * tanh(c).
    Returns h after `lengths` time steps, and after each: (batch, time, units)."""
    weights = tf.concat([cell.kernel, cell.recurrent_kernel, cell.bias[None]], 0)
    i, f, new, o = tf.split(weights, 4, axis=1)  # the order of the gates in Keras
    weights = tf.concat([i, new, f, o], 1)  # and in BlockLSTM
    # The other half of a single review is empty, and its gradient not a number.
    weights = tf.where(tf.size(lengths) > 0, weights, 0.0)
    given = {"cs_prev": c, "h_prev": h, "w": weights[:-1], "b": weights[-1]}
    off = dict.fromkeys(["wci", "wcf", "wco"], tf.zeros(h.shape[1]))  # no peepholes
    off |= {"forget_bias": 0.0, "cell_clip": -1.0}  # Keras's bias has it; no clipping
    inputs = tf.transpose(inputs, (1, 0, 2))
    steps = tf.shape(inputs, "int64")[0]
    states = tf.raw_ops.BlockLSTM(seq_len_max=steps, x=inputs, **given, **off).h
    ends = tf.stack([lengths, tf.range(tf.size(lengths))], 1)
    last = tf.gather_nd(tf.concat([h[None], states], 0), ends)
    return last, tf.transpose(states, (1, 0, 2))


# %% After training: keep the model, use it, look at it
def with_lookup(model, vocabulary, config):
    """Return a keras.Model of the same layers that takes words: str (batch, time), from
    [START] on, "" as padding. Its input's name tells `reads_as` how to read a text."""
    name = "rarest_words" if config.rarest else "last_words"
    name = f"{name}_then_padding" if config.masked else f"padding_then_{name}"
    words = keras.Input((config.max_sequence_length,), dtype="string", name=name)
    known = [*vocabulary][START:]  # StringLookup itself has the two before
    x, mask = keras.layers.StringLookup(vocabulary=known, mask_token="")(words), None
    for layer in model.layers:
        real = layer.compute_mask(x, mask) if layer.supports_masking else None
        pooling = isinstance(layer, ConcatPooling)  # kept as its Keras operations
        x, mask = layer.call(x, mask) if pooling else layer(x), real
    return keras.Model(words, x)


def reads_as(model):
    """Return the vocabulary of a model that takes words, and how to `prepare` texts."""
    kind, name = keras.layers.StringLookup, model.inputs[0].name
    with as_user_error("model: takes no words; use what main returns, or load reads"):
        (lookup,) = (layer for layer in model.layers if isinstance(layer, kind))
    tokens = [*SPECIAL[:START], *lookup.get_config()["vocabulary"]]
    how = {"rarest": "rarest" in name, "masked": name.endswith("padding")}
    how |= {"num_bigrams": sum(" " in token for token in tokens)}
    how |= {"max_sequence_length": model.input_shape[1]}
    return dict(zip(tokens, count())), Config(**how)


def keep(model, history, results, config):
    """Write the model, whole or not at all, and then the curves of the training."""
    if not np.isfinite(results["loss"]):
        raise ArithmeticError("loss: not finite, nothing is kept; lower learning_rate")
    path = str(config.model_path)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path) or ".") as folder:
        model.save(whole := os.path.join(folder, "whole.keras"))
        replaced = " (replaced)" if os.path.exists(path) else ""
        os.replace(whole, path)
    flag = "" if path == Config.model_path else f"--model-path {shlex.quote(path)} "
    example = f'python lstm.py {flag}--predict "A wonderful film"'
    print(f"Model kept in {path}{replaced} - try: {example}")
    if config.plot:
        from matplotlib.figure import Figure

        axis = (figure := Figure()).gca()
        for name, curve in history.history.items():
            axis.plot(range(1, len(curve) + 1), curve, "o-", label=name)
        axis.legend(title="epoch")
        show(figure, config.plot)


def load(path):
    """Read a model that training kept; raises UserError if it cannot be loaded."""
    text = f"model_path: {path} cannot be loaded; did you train?"
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        kept = json.loads(archive.read("metadata.json"))["keras_version"]
        if kept != (now := keras.__version__):
            text = f"model_path: {path}: kept with Keras {kept}, this is {now}; "
            text += "upgrade Keras"
    with as_user_error(text):
        model = keras.saving.load_model(path, compile=False)
        reads_as(model)
    use_fast_loop(model)
    return model


def predict(texts, model):
    """Return the probability that each of `texts` is positive: float32 (texts,).
    texts: a str, a list of them, or a Series or DataFrame of them; UserError if not.
    model: as `main` returns it, or as `load` or keras.saving.load_model reads it."""
    texts = [texts] if isinstance(texts, str) or not np.iterable(texts) else texts
    texts = texts.to_numpy().ravel() if hasattr(texts, "to_numpy") else list(texts)
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"texts: item {n} is no text but {text!r:.50}")
    vocabulary, config = reads_as(model)
    words, results = np.array([*vocabulary], object), [np.zeros(0, "float32")]
    for i in range(0, len(texts), 1000):  # so that many texts need little memory
        reviews = [encode(text, vocabulary) for text in texts[i : i + 1000]]
        tokens = tf.constant(words[prepare(reviews, vocabulary, config)])
        results.append(model.predict(tokens, batch_size=1000, verbose=0)[:, 0])
    return np.concatenate(results)


def encode(text, vocabulary):
    """Turn a text into an int32 array of token ids: START, then its words'."""
    ids = [vocabulary.get(word, OUT_OF_VOCABULARY) for word in split_words(text)]
    return np.array([START, *ids], "int32")


def split_words(text):
    """Split a text much as the IMDB reviews were: lower case, at all signs but '."""
    text = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    signs = {c for c in text if c != "'" and unicodedata.category(c)[0] not in "LMN"}
    words = text.translate({ord(c): " " for c in signs}).split()
    return [word.strip("'") for word in words if word.strip("'")]


def classify(texts, config):
    """Print a line for each text: the text shortened, its label, its probability."""

    def standard_input():  # each list: lines that have arrived, without a wait
        if not hasattr(sys.stdin, "buffer"):  # not a file, or nothing at all
            yield [line.rstrip("\n") for line in sys.stdin or ()]
            return
        rest = b""
        while chunk := sys.stdin.buffer.read1(2**20):
            *lines, rest = (rest + chunk).split(b"\n")
            yield [line.decode(errors="replace") for line in lines]
        yield [rest.decode(errors="replace")] if rest else []

    for text in filter(os.path.isfile, texts):
        how = f"for its lines: python lstm.py --predict - < {shlex.quote(text)}"
        raise UserError(f"predict: {text} is a file; {how}")
    check_paths(config, ["plot"])
    model, shown = load(config.model_path), []
    vocabulary, _ = reads_as(model)
    for group in standard_input() if texts == ["-"] else [texts]:
        for text, probability in zip(group, predict(group, model)):
            known = encode(text, vocabulary).max() >= FIRST_WORD
            text = "".join(c if c.isprintable() else " " for c in text[:200]).strip()
            text = text if len(text) <= 50 else text[:47] + "..."
            text += " - positive" if probability > 0.5 else " - negative"
            text += f" - {probability:.4f}" + ("" if known else " - no known word")
            print(text, flush=True)
        shown = (shown + group)[:6]
    if config.plot and shown:
        plot_reading(shown, model, config.plot)


def plot_reading(texts, model, path=""):
    """Draw how the probability of a positive review changes, word by word, to `path`.
    texts are a str or up to six; of each all words are read, and the last 60 drawn.
    The words that move it most are marked, those that model does not know are grey."""
    from matplotlib.figure import Figure

    texts = [texts] if isinstance(texts, str) else texts[:6]
    vocabulary, _ = reads_as(model)
    figure = Figure(figsize=(11, 3.5 * len(texts)), layout="constrained")
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
            unknown = OUT_OF_VOCABULARY in encode(word, vocabulary)
            tick.set(parse_math=False, color="darkgrey" if unknown else "black")
        moves = np.diff(curve)
        for n in np.argsort(-np.abs(moves))[: sum(np.abs(moves) > 0.02)][:5]:
            axis.text(n + 1, curve[n + 1] + 0.03, f"{moves[n]:+.2f}", ha="center")
    show(figure, path)


def show(figure, path):
    """Write a Matplotlib figure to `path`, if any, and show it in a notebook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a font that lacks an emoji
        if path:
            figure.savefig(path, dpi=150)
        if IN_NOTEBOOK:
            from IPython.core.pylabtools import print_figure
            from IPython.display import Image, display

            display(Image(print_figure(figure)))


# %% Your own reviews
NAMES = {"review": "text", "sentiment": "label"}  # as other people call the columns
LABELS = dict.fromkeys(["0", "0.0", "-1", "neg", "negative", "false", "no", "bad"], 0)
LABELS |= dict.fromkeys(["1", "1.0", "pos", "positive", "true", "yes", "good"], 1)


def read_csv(config):
    """Read the CSV file config.data: columns text (or review), label (or sentiment),
    perhaps split (train, test), else a fifth of each label is for the test, by chance.
    Returns what `load_data` does; raises UserError."""
    path, line, table, parts = config.data, 1, [], []
    csv.field_size_limit(2**31 - 1)  # a text may be long
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            names = [name.strip().lower() for name in next(rows, [])]
            names = [n if NAMES.get(n) in names else NAMES.get(n, n) for n in names]
            if not {"text", "label"} <= set(names):
                raise ValueError(f"needs columns text and label; it has {names}")
            line = rows.line_num + 1
            for row in rows:
                if len(row) not in (0, len(names)):
                    raise ValueError(
                        f"{len(row)} columns, not {len(names)}: quote texts"
                    )
                if row:  # no empty line
                    cells = {"split": "train"} | dict(zip(names, row))
                    label, split = cells["label"].strip(), cells["split"].strip()
                    if label.lower() not in LABELS:
                        raise ValueError(f"{label!r} is of neither class: {[*LABELS]}")
                    if split.lower() not in ("train", "test"):
                        raise ValueError(f"split {split!r} is neither train nor test")
                    is_test = split.lower() == "test"
                    table.append((cells["text"], LABELS[label.lower()], is_test))
                line = rows.line_num + 1
    except (OSError, ValueError, csv.Error) as error:
        hint = "; save it as UTF-8" if isinstance(error, UnicodeError) else ""
        raise UserError(f"data: {path}: line {line}: {error}{hint}") from None
    texts, labels, held_out = ([row[n] for row in table] for n in range(3))
    labels, held_out = np.array(labels, int), np.array(held_out, bool)
    random = np.random.default_rng(config.seed)
    if "split" not in names:
        order = random.permutation(len(texts))
        held_out[order[np.argsort(labels[order], kind="stable")][::5]] = True
    train = np.flatnonzero(~held_out)
    counts = Counter(word for row in train for word in split_words(texts[row]))
    words = [w for w, _ in counts.most_common(config.num_distinct_words - FIRST_WORD)]
    vocabulary = dict(zip([*SPECIAL, *words], count()))
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

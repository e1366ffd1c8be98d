"""An LSTM that learns whether a film review is positive or negative.

    python lstm.py

Reads the 50,000 IMDB reviews (17 MB, downloaded once), trains Embedding -> LSTM
-> Dense for five epochs and reports the accuracy on 25,000 reviews it never saw:

                        mean and standard deviation over seeds
    --preset article    86.3 and 0.8%, the values of a well-known article
    --preset tuned      89.4 and 0.1%, the same words, put to better use
    --preset large      90.8 and 0.1%, more words, and pairs of words

On a CPU, training takes a fifth of the time that it takes in plain Keras. README.md
says how that was measured.

Every value below is also a flag (`python lstm.py --help`). In a notebook, paste the
file into one cell or open it cell by cell (`# %%`); `model`, `history` and
`test_results` stay behind for the next cell.
"""

# %% The tools: Python's own for now; TensorFlow comes in once the CPU switch is set
import argparse
import array
import ast
import contextlib
import csv
import difflib
import gc
import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import os
import pickle
import re
import signal
import sys
import tempfile
import time
import types
import zipfile
import zlib
from dataclasses import dataclass, field, fields

import numpy as np

IN_NOTEBOOK = "ipykernel" in sys.modules


# %% Configuration: how the model is built and trained, in one place
@dataclass(frozen=True, init=False)
class Config:
    """Every choice of the run. `Config(number_of_epochs=1)` changes one of them.

    Raises UserError for a value that cannot work, naming its field.
    """

    # The article's
    additional_metrics: tuple = ("accuracy",)  # watched beside the loss
    batch_size: int = 128  # reviews per training step
    embedding_output_dims: int = 15  # length of the vector that stands for a word
    loss_function: str = "binary_crossentropy"  # two classes, one probability
    max_sequence_length: int = 300  # tokens per review; longer ones lose their start
    num_distinct_words: int = 5000  # size of the vocabulary, 4 special ids included
    number_of_epochs: int = 5  # passes over the training reviews
    optimizer: str = "adam"  # with Keras's default settings
    validation_split: float = 0.20  # last part of the training set, held out
    verbosity_mode: int = 1  # 0 silent, 1 progress, 2 one line an epoch
    lstm_units: int = 10  # size of the LSTM's state
    # Beyond the article
    preset: str = "article"  # which values to start from: article, tuned or large
    masked: bool = False  # pad after the text, skip the padding, batch by length
    rarest: bool = False  # skip unknown words and a long review's most common ones
    num_word_pairs: int = 0  # so many pairs of neighbouring words are words, too
    readout: str = "last"  # what Dense reads: last state, or all: last, mean, maximum
    word_dropout: float = 0.0  # share of the words hidden in training
    dropout: float = 0.0  # share of the numbers hidden before and after the LSTM
    learning_rate: float = 0.001  # of the optimizer; 0.001 is Keras's for Adam
    cosine_decay: bool = False  # let the learning rate fall to 0 along a cosine
    lstm_options: dict = field(default_factory=dict)  # more of Keras's LSTM
    seed: int = 1  # same seed, same machine, same result
    force_cpu: bool = False  # hide the GPU, for when it is slower
    data: str = ""  # a CSV file with columns text and label, in place of IMDB
    model_path: str = "lstm.keras"  # where the trained model is kept
    plot: str = ""  # a picture to draw of the training, such as curves.png

    def __init__(self, **given):
        """The defaults above, then the preset's values, then what was given."""
        names = [f.name for f in fields(self)]
        for name in given:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                known = ", ".join(names)
                hint = f"did you mean {close[0]}?" if close else f"use one of {known}"
                raise UserError(f"{name}: there is no such field; {hint}")
        defaults = {
            f.name: f.default if f.default_factory is not dict else {}
            for f in fields(self)
        }
        preset = given.get("preset", defaults["preset"])
        if preset not in list(PRESETS):  # whatever type it has
            raise UserError(f"preset: {preset!r} is not one of {', '.join(PRESETS)}")
        for name, value in (defaults | PRESETS[preset] | given).items():
            object.__setattr__(self, name, value)
        check(self)


PRESETS = {
    "article": {},
    # The article's 5,000 words, put to better use. The points of accuracy are what is
    # lost without the value, on held-out training reviews.
    "tuned": {
        "masked": True,  # less work: no padding is read
        "rarest": True,  # 0.6 points
        "max_sequence_length": 250,  # 0 points, but fewer time steps than 300
        "readout": "all",  # 0.3 points
        "word_dropout": 0.5,  # 0.5 points, and half the time steps
        "learning_rate": 0.005,  # 0.2 points
        "cosine_decay": True,  # 0.2 points
        "embedding_output_dims": 32,  # 0.1 points
        "validation_split": 0.0,  # a fifth more reviews to learn from
    },
}
PRESETS["large"] = PRESETS["tuned"] | {
    "num_distinct_words": 20000,  # 0.6 points
    "num_word_pairs": 20000,  # 1.7 points; such as "not good"
    "dropout": 0.7,  # 0 points, 4% less loss
    "word_dropout": 0.6,  # 0 points, 2% less loss over five fifths
    "lstm_units": 32,  # 0.1 points
}


def one_line(error):
    """The message of an exception, or its name, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class UserError(Exception):
    """A mistake of the user's, told in one line without a traceback."""

    def __init__(self, text):
        super().__init__(one_line(text))

    def _render_traceback_(self):  # what IPython prints in the traceback's place
        return [f"lstm.py: {self}"]


def check(config):
    """Refuse what can be seen to be wrong before TensorFlow and data are loaded.

    Raises UserError, naming the field, for a value of another type or out of range.
    """

    def require(name, met, what):
        if not met:
            value = getattr(config, name)
            raise UserError(f"{name}: {value!r} will not do; give {what}")

    whats = {int: "a whole number", float: "a number", bool: "True or False"}
    whats |= {str: "a name", dict: "NAME=VALUE pairs", tuple: "a list of names"}
    for f in fields(config):
        value = getattr(config, f.name)
        takes = {int: (int, np.integer), float: (float, int), tuple: (tuple, list)}
        right = isinstance(value, takes.get(f.type, f.type))
        if isinstance(value, bool):  # which Python counts among the whole numbers
            right = f.type is bool
        if f.name in ("optimizer", "loss_function"):  # or one of Keras's objects
            right = True
        require(f.name, right, whats[f.type])
    ranges = {"num_distinct_words": (4, 2**24), "verbosity_mode": (0, 2)}
    ranges |= {"seed": (0, 2**32 - 1), "num_word_pairs": (0, 2**24)}
    for f in fields(config):
        if f.type is int:
            least, most = ranges.get(f.name, (1, 2**20))
            value = getattr(config, f.name)
            require(f.name, least <= value <= most, f"{least} to {most}")
    for name in ("validation_split", "word_dropout", "dropout"):
        require(name, 0 <= getattr(config, name) < 1, "0 or more, below 1")
    require("learning_rate", 0 < config.learning_rate < 1, "a number between 0 and 1")
    require("model_path", config.model_path.endswith(".keras"), "a name in .keras")
    require("word_dropout", config.masked or not config.word_dropout, "0, or masked")
    readouts = ["last"] if config.lstm_options.get("go_backwards") else ["last", "all"]
    require("readout", config.readout in readouts, " or ".join(readouts))
    for name in config.lstm_options:
        if name in ("return_sequences", "return_state", "stateful", "time_major"):
            raise UserError(
                f"lstm_options: {name} does not fit this model, whose Dense layer "
                "reads one vector per review and keeps no state between batches; "
                "leave it out"
            )
        value = config.lstm_options[name]
        number = isinstance(value, (int, float))
        if "dropout" in name and not (number and 0 <= value < 1):
            raise UserError(f"lstm_options: {name} must be 0 or more and below 1")


# %% The command line: every field of Config is a flag of the same name
def parse_command_line(arguments):
    """Return the Config that `arguments` (a list of str) ask for, and texts to judge.

    The texts are None where --predict was not given. Raises UserError for a flag or
    value that is not understood.
    """

    def fail(message):
        raise UserError(message.replace("unrecognized arguments:", "unknown flag"))

    def option(text):
        name, equals, value = text.partition("=")
        if not (name and equals):
            fail(f"--lstm-options: {text!r} is not NAME=VALUE, such as dropout=0.2")
        name = name.replace("-", "_")
        words = {"true": True, "false": False, "none": None}
        if value.lower() in words:
            return name, words[value.lower()]
        try:
            return name, ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return name, value  # a name, such as l2 or tanh

    parser = argparse.ArgumentParser(
        prog="lstm.py",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # only what was given overrides a preset
    )
    parser.error = fail
    # The comment beside a field is its help.
    comments = dict(
        re.findall(r"^    (\w+):.*?  # (.+)$", inspect.getsource(Config), re.MULTILINE)
    )
    group = parser.add_argument_group("the article's")
    for f in fields(Config):
        if f.name == "preset":
            group = parser.add_argument_group("beyond the article")
        flag = "--" + f.name.replace("_", "-")
        default = "none" if f.type is dict else f.default
        default = " ".join(default) if f.type is tuple else default
        text = f"{comments[f.name]} (default: {default})".replace("%", "%%")
        kind = {"type": f.type, "metavar": f.type.__name__.upper()}
        if f.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif f.type is tuple:
            kind = {"nargs": "*", "metavar": "NAME"}
        elif f.type is dict:
            kind = {"nargs": "*", "metavar": "NAME=VALUE", "type": option}
        elif f.name == "preset":
            kind = {"metavar": "|".join(PRESETS)}
        elif f.type is str:
            kind = {"metavar": "NAME"}
        group.add_argument(flag, help=text, **kind)
    after = parser.add_argument_group("after training")
    text = "judge texts, or the lines of standard input (-), with the kept model"
    after.add_argument("--predict", nargs="+", metavar="TEXT", help=text, default=None)
    # --batch_size is --batch-size
    arguments = [
        re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), argument)
        for argument in arguments
    ]
    given = vars(parser.parse_args(arguments))
    if "lstm_options" in given:
        given["lstm_options"] = dict(given["lstm_options"])
    texts = given.pop("predict")
    return Config(**given), texts


@contextlib.contextmanager
def told_in_one_line():
    """End a script with one line instead of a traceback where the user is to act.

    Exit codes: 2 for a UserError and what the system refuses (a full disk), 130 for
    Ctrl-C and SIGTERM, 1 for output that nobody reads on. Notebooks see exceptions.
    """
    try:
        yield
        print(end="", flush=True)
    except BaseException as error:  # an interruption can come out as any of them
        told = isinstance(error, (UserError, OSError)) or progress.interrupted
        if not (IS_SCRIPT and told):
            raise
        code, text = 2, one_line(error)
        if progress.interrupted:
            code, text = 130, "stopped"
            if progress.epochs:
                text += f" after {progress.epochs} epochs; nothing of them is kept"
        elif isinstance(error, BrokenPipeError):  # `| head` has seen enough
            code, text = 1, None
        with contextlib.suppress(OSError):
            print(end="", flush=True)  # what was said before
        if text:
            print(f"lstm.py: {text}", file=sys.stderr, flush=True)
        os._exit(code)  # at once: TensorFlow taken down half-way has more to say


def interrupt(*_):
    """What Ctrl-C and SIGTERM do to a script: raise KeyboardInterrupt.

    While the model trains it waits for the end of the batch (see EpochLine), as
    TensorFlow can crash on an exception in its midst; a second time it does not wait.
    """
    waits = progress.training and not progress.interrupted
    progress.interrupted = True
    if not waits:
        raise KeyboardInterrupt


progress = types.SimpleNamespace(epochs=0, training=False, interrupted=False)
config, texts = Config(), None
IS_SCRIPT = __name__ == "__main__" and not IN_NOTEBOOK
if IS_SCRIPT:  # a kernel's command line is not ours
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    with told_in_one_line():
        config, texts = parse_command_line(sys.argv[1:])

# %% The CPU switch: TensorFlow claims the GPU when it is imported, so it comes before
if config.force_cpu:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can run on others; this file cannot


@contextlib.contextmanager
def quiet_start():
    """Hide TensorFlow's start-up notes, unless TF_CPP_MIN_LOG_LEVEL asks for them.

    They come from C++ and partly before that variable is read, so what is written to
    the process's stderr meanwhile is dropped. Python's exceptions are not affected.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3") != "3" or not sys.stderr:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


with told_in_one_line(), quiet_start():
    import keras
    import tensorflow as tf

    # An LSTM on a CPU is thousands of tiny operations. One core each, two side by side,
    # beats every one of them split over all the cores.
    with contextlib.suppress(RuntimeError):  # it was in use before, in a notebook
        tf.config.threading.set_intra_op_parallelism_threads(1)
    # The first thing that XLA compiles makes older versions write notes, too.
    tf.function(tf.zeros, jit_compile=True)([])

# The article calls tf.compat.v1.disable_eager_execution() here, for speed. On today's
# TensorFlow that makes fit() raise, and it is no longer needed: Keras 3 traces the
# training step once and runs it as a graph from then on.

# %% Data: 25,000 reviews to train on and 25,000 to test with
# A review is a list of ranks: 1 is the most frequent word of the training reviews, 2
# the next. As token ids they are moved up by three: the first four ids are special.
PADDING, START, OUT_OF_VOCABULARY, UNUSED, FIRST_WORD = range(5)
UNKNOWN_RANK = 2**30  # of a word that the model does not know
IMDB_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
IMDB_HASH = {  # SHA-256 and MD5, as Keras has them
    "imdb.npz": "69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f",
    "imdb_word_index.json": "bfafd718b763782e994055a2d397834f",
}


def load_data(config):
    """Read IMDB, or the reviews of config.data.

    Returns (x_train, y_train), (x_test, y_test), vocabulary: object arrays of reviews,
    each a sequence of word ranks; int64 arrays of labels, 1 for a positive review; and
    the list of words by rank, the most frequent first: all of them. Raises UserError.
    """
    if config.data:
        return read_csv(config.data, config.seed)
    train_part, test_part = load_imdb()
    with open(download("imdb_word_index.json"), encoding="utf-8") as file:
        ranks = json.load(file)
    return train_part, test_part, sorted(ranks, key=ranks.get)


def load_imdb():
    """Download (the first time) and read IMDB, as `keras.datasets.imdb.load_data` does.

    That function spends seconds on Python lists that `pad` does in NumPy. Same
    file, same cache, same order of the reviews.

    Returns (x_train, y_train), (x_test, y_test): object arrays of shape (25000,) that
    hold lists of word ranks, and int64 arrays of labels, 1 for a positive review.
    Raises UserError if the file cannot be had or cannot be read.
    """
    path = download("imdb.npz")
    gc.disable()  # 50,000 new lists are no rubbish, and to look costs half the time
    try:
        with zipfile.ZipFile(path) as archive:
            x_train, y_train, x_test, y_test = (
                read_array(archive, name)
                for name in ("x_train", "y_train", "x_test", "y_test")
            )
        if not len(x_train) == len(y_train) > 0 or not len(x_test) == len(y_test) > 0:
            raise ValueError("reviews and labels differ in number")
    except (
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        OSError,
        zlib.error,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(
            f"imdb.npz: {path} is damaged ({one_line(error)}); "
            "delete it and run again to download it anew"
        ) from None
    finally:
        gc.enable()
    parts, shuffler = [], np.random.RandomState(113)  # Keras's, for the same order
    for x, y in ((x_train, y_train), (x_test, y_test)):
        order = np.arange(len(x))
        shuffler.shuffle(order)
        parts.append((x[order], y[order]))
    return parts


def pad(reviews, vocabulary, config):
    """Turn reviews into token ids, all of one length, as `pad_sequences` would.

    Args: reviews, a sequence of lists of word ranks; vocabulary, the words (and pairs)
    that the model knows, by rank.
    Returns an int32 array of shape (reviews, max_sequence_length). Zeros stand before
    a short review (after it if masked); a long one loses its beginning, start token
    included, or its most common words if `rarest`.
    """
    length = config.max_sequence_length
    ranks, rows = add_pairs(*flatten(reviews), vocabulary)
    if config.rarest:
        known = ranks <= len(vocabulary)
        ranks, rows = ranks[known], rows[known]
    ranks, rows = shorten(ranks, rows, length - config.rarest, config.rarest)
    ids = ranks + (FIRST_WORD - 1)
    tokens = np.where(ranks > len(vocabulary), OUT_OF_VOCABULARY, ids)

    lengths = np.bincount(rows, minlength=len(reviews))
    short = lengths < length  # with room for the start token
    first = short.astype(int) if config.masked else length - lengths
    column = np.arange(length)
    real = (column >= first[:, None]) & (column < (first + lengths)[:, None])
    padded = np.full((len(reviews), length), PADDING, np.int32)
    padded[real] = tokens
    padded[short, first[short] - 1] = START
    return padded


# %% Model: Embedding -> LSTM -> Dense
def build_model(config):
    """Build the classifier; `compile_model` makes it ready to train.

    Returns a keras.Sequential: int token ids of shape (batch, max_sequence_length) in,
    probability of a positive review, shape (batch, 1), out. Raises UserError if Keras
    refuses one of lstm_options.
    """
    model = keras.Sequential()
    model.add(keras.Input((config.max_sequence_length,), dtype="int32"))
    # A table with one vector per word, learned like every other weight.
    model.add(
        keras.layers.Embedding(
            config.num_distinct_words + config.num_word_pairs,
            config.embedding_output_dims,
            mask_zero=config.masked,
        )
    )
    # Reads the vectors in order and keeps what matters in its state.
    options = {"units": config.lstm_units, "dropout": config.dropout}
    options |= config.lstm_options
    half = -(-config.batch_size // 2)
    with refusals_named(config, "lstm_options"):
        model.add(FastLSTM(**options, readout=config.readout, rows=half, name="lstm"))
    if config.dropout:
        model.add(keras.layers.Dropout(config.dropout))
    # From the LSTM's state to one probability.
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    return model


# %% Training and evaluation
def compile_model(model, training_reviews, config):
    """Give the model its optimizer, loss and metrics."""
    optimizer = config.optimizer
    if isinstance(optimizer, str):
        rate = config.learning_rate
        if config.cosine_decay:
            batches = math.ceil(training_reviews / config.batch_size)
            rate = keras.optimizers.schedules.CosineDecay(
                rate, batches * config.number_of_epochs
            )
        settings = {"class_name": optimizer, "config": {"learning_rate": rate}}
        optimizer = keras.optimizers.get(settings)
    model.compile(
        optimizer=optimizer,
        loss=config.loss_function,
        metrics=list(config.additional_metrics),
        steps_per_execution=8,  # return to Python only every so many batches
    )
    # Made here, their variables do not have Keras trace the training step twice.
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(None, tf.zeros(1), tf.zeros((1, 1)))
    model.reset_metrics()


def train(model, x_train, y_train, config):
    """Fit the compiled model on token ids (reviews, time) and labels (reviews,).

    Returns Keras's History, whose `.history` holds the curves.
    """
    first = split_at(len(x_train), config)
    x_train, x_valid = x_train[:first], x_train[first:]
    y_train, y_valid = y_train[:first], y_train[first:]
    on_terminal = sys.stdout and sys.stdout.isatty()  # None if it was closed
    verbose = config.verbosity_mode
    lines = verbose == 2 or (verbose == 1 and not (IN_NOTEBOOK or on_terminal))
    valid = as_input(x_valid, y_valid, config, training=False)
    return model.fit(
        as_input(x_train, y_train, config, training=True),
        validation_data=valid if len(x_valid) else None,
        shuffle=False,  # as_input has
        epochs=config.number_of_epochs,
        verbose=0 if lines else verbose,
        callbacks=[EpochLine(config.number_of_epochs, lines)],
    )


def split_at(reviews, config):
    """How many of the training reviews to learn from; the last ones are held out."""
    first = int(reviews * (1 - config.validation_split))  # as Keras counts
    if config.validation_split and not 0 < first < reviews:
        raise UserError(
            f"validation_split: leaves one of the sides of {reviews} reviews empty"
        )
    return first


def as_input(x, y, config, training):
    """Batches of token ids and labels for `fit` and `evaluate`: a tf.data.Dataset."""
    size = config.batch_size if training else TEST_BATCH
    if config.masked:
        data = batches_by_length(x, y, size, config, training)
    elif training:
        data = shuffled_batches(x, y, size)
    else:
        data = tf.data.Dataset.from_tensors((x, y)).rebatch(size)
    count = tf.data.experimental.assert_cardinality(-(-len(x) // size))
    options = tf.data.Options()
    # The tuner that TensorFlow runs beside an input pipeline can miss the end of an
    # epoch, which then waits for its next look: up to as long again as it took.
    options.autotune.enabled = False
    return data.apply(count).prefetch(8).with_options(options)


TEST_BATCH = 1000  # without gradients there is memory for more reviews at once


def evaluate(model, x_test, y_test, config):
    """Return a dict of the loss and the metrics on token ids and labels."""
    data = as_input(x_test, y_test, config, training=False)
    return model.evaluate(data, verbose=0, return_dict=True)


def describe(test_results):
    """The test results as text: the loss first, accuracies in percent."""
    texts = [f"Loss: {test_results['loss']:.4f}"]
    for name, value in test_results.items():
        if name != "loss":
            text = f"{value:.2%}" if "accuracy" in name else f"{value:.4f}"
            texts.append(f"{name.capitalize()}: {text}")
    return " - ".join(texts)


# %% The run, from the reviews to the result
def main(config):
    """Load, build, train, evaluate and print.

    Returns (model, history, test_results): the trained keras.Sequential, Keras's
    History of the fit, and a dict of the loss and the metrics on the test reviews.
    Raises UserError for what the user can put right.
    """
    if config.force_cpu and tf.config.list_logical_devices("GPU"):
        raise UserError(
            "force_cpu: TensorFlow has claimed the GPU; restart Python and set it in "
            "Config before TensorFlow is imported"
        )
    keras.utils.set_random_seed(config.seed)
    check_compiles(config)  # first, to fail at once and not at the end
    check_paths(config)
    model = build_model(config)

    start = time.perf_counter()
    (x_train, y_train), (x_test, y_test), vocabulary = load_data(config)
    vocabulary = vocabulary[: config.num_distinct_words - FIRST_WORD]
    first = split_at(len(x_train), config)
    vocabulary += telling_pairs(
        x_train[:first], y_train[:first], vocabulary, config.num_word_pairs
    )
    shapes = x_train.shape, x_test.shape
    x_train = pad(x_train, vocabulary, config)
    x_test = pad(x_test, vocabulary, config)
    load_time = time.perf_counter() - start

    model.vocabulary, model.rarest = vocabulary, config.rarest
    print(*shapes, sep="\n")
    model.summary()  # of the layers: the optimizer's variables come after
    compile_model(model, first, config)

    start = time.perf_counter()
    history = train(model, x_train, y_train, config)
    fit_time = time.perf_counter() - start

    start = time.perf_counter()
    test_results = evaluate(model, x_test, y_test, config)
    evaluate_time = time.perf_counter() - start

    print(f"Test results - {describe(test_results)}")
    print(
        f"Time - load: {load_time:.1f}s - fit: {fit_time:.1f}s "
        f"- evaluate: {evaluate_time:.1f}s"
    )
    if len(x_test) < 1000:
        points = 100 / len(x_test)
        print(f"({len(x_test)} test reviews, {points:.2g}% each: no benchmark)")
    if config.plot:
        draw(history, test_results, config.plot)
    save(model, config.model_path)
    print(
        f"Model kept in {config.model_path} - try: "
        'python lstm.py --predict "A wonderful film"'
    )
    return model, history, test_results


# %% The story ends here: what it called upon follows, to be read when wanted
def flatten(reviews):
    """The ranks of all words in one int32 array, and the review that each is from."""
    lengths = np.fromiter(map(len, reviews), np.int64, len(reviews))
    words = itertools.chain.from_iterable(reviews)
    ranks = np.fromiter(words, np.int32, lengths.sum())
    return ranks, np.repeat(np.arange(len(reviews), dtype=np.int32), lengths)


def shorten(ranks, rows, most, rarest):
    """Leave out the beginning of each review of over `most` words.

    If `rarest`, leave out its most common words in place of that: they say least.
    """
    lengths = np.bincount(rows)
    ends = np.cumsum(lengths)
    kept = np.ones(len(ranks), bool)
    for row in np.flatnonzero(lengths > most):
        review = slice(ends[row] - lengths[row], ends[row])
        left_out = slice(lengths[row] - most)
        if rarest:
            left_out = np.argsort(ranks[review], kind="stable")[left_out]
        kept[review][left_out] = False
    return ranks[kept], rows[kept]


def shuffled_batches(x, y, size):
    """Batches of `size` reviews in the order in which `fit` would take them.

    It depends on the seed and is the same in each epoch, as that of `fit` is.
    """
    tokens, labels = tf.constant(x), tf.constant(y)

    def shuffled(_):
        return tf.random.shuffle(tf.range(len(x), dtype=tf.int64))

    rows = tf.data.Dataset.range(1).map(shuffled).rebatch(size)
    return rows.map(lambda rows: (tf.gather(tokens, rows), tf.gather(labels, rows)))


def batches_by_length(x, y, size, config, training):
    """Batches of `size` reviews of like length, each cut to its longest.

    A hundred batches of reviews at a time are sorted by length. In training they come
    in another order each epoch, and lose `word_dropout` of their words, so that the
    model learns to rely on none alone.
    """
    random = np.random.default_rng(config.seed)

    def sorted_pools():
        order = random.permutation(len(x)) if training else np.arange(len(x))
        for rows in np.split(order, range(100 * size, len(x), 100 * size)):
            tokens = x[rows]
            if training and config.word_dropout:
                tokens = drop_words(tokens, config.word_dropout, random)
            by_length = np.argsort((tokens != PADDING).sum(1), kind="stable")
            yield tokens[by_length], y[rows][by_length]

    def cut(tokens, labels):
        return tokens[:, : tf.math.count_nonzero(tokens[-1])], labels  # the longest

    shapes = tf.TensorSpec((None, x.shape[1]), "int32"), tf.TensorSpec((None,), "int64")
    data = tf.data.Dataset.from_generator(sorted_pools, output_signature=shapes)
    data = data.rebatch(size)
    if training:
        data = data.shuffle(100, config.seed)
    return data.map(cut)


def drop_words(tokens, share, random):
    """Leave out `share` of the words of reviews that are padded behind, by chance."""
    kept = (tokens != PADDING) & (random.random(tokens.shape, np.float32) >= share)
    kept[:, 0] = True  # no review is left empty
    shortened = np.zeros_like(tokens)
    places = np.arange(tokens.shape[1]) < kept.sum(1)[:, None]
    shortened[places] = tokens.ravel()[np.flatnonzero(kept)]
    return shortened


class EpochLine(keras.callbacks.Callback):
    """Print a line for each epoch if asked to; stop after a batch if interrupted."""

    def __init__(self, epochs, printed):
        super().__init__()
        self.epochs, self.printed = epochs, printed
        progress.epochs = 0

    def on_train_begin(self, logs=None):
        progress.training = True

    def on_train_end(self, logs=None):
        progress.training = False

    def on_train_batch_end(self, batch, logs=None):
        if progress.interrupted:
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        progress.epochs += 1
        if self.printed:
            values = " - ".join(f"{name}: {value:.4f}" for name, value in logs.items())
            seconds = time.perf_counter() - self.start
            text = f"Epoch {epoch + 1}/{self.epochs} - {seconds:.1f}s - {values}"
            print(text, flush=True)


def download(name):
    """Return the path of one of IMDB's files in Keras's cache, downloaded if need be.

    It is downloaded into a folder of its own and moved when whole, so that neither a
    killed run nor another one beside it leaves half a file. Raises UserError.
    """
    home = os.environ.get("KERAS_HOME") or os.path.join("~", ".keras")
    cache = os.path.join(os.path.expanduser(home), "datasets")
    cached, url, expected = os.path.join(cache, name), IMDB_URL + name, IMDB_HASH[name]
    try:
        with open(cached, "rb") as file:
            algorithm = hashlib.sha256 if len(expected) == 64 else hashlib.md5
            if algorithm(file.read()).hexdigest() == expected:
                return cached
    except OSError:
        pass  # not there yet
    try:
        os.makedirs(cache, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            path = keras.utils.get_file(name, url, file_hash=expected, cache_dir=folder)
            if not path.startswith(folder):  # get_file knows of another copy
                return path
            os.replace(path, cached)
            return cached
    except Exception as error:  # noqa: BLE001 - get_file raises just that
        raise UserError(
            f"{name}: no whole copy in {cache}, and its download from {url} failed "
            f"({one_line(error)}); put the file there by hand, or try the script on "
            "made-up reviews: --data tests/data/reviews.csv"
        ) from None


@contextlib.contextmanager
def refusals_named(config, name):
    """Turn what Keras says to a value of `config` into a UserError of one line."""
    try:
        yield
    except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise UserError(
            f"{name}: Keras does not take {getattr(config, name)!r} "
            f"({one_line(error)[:150]})"
        ) from None


def check_compiles(config):
    """Refuse an optimizer, loss or metric that Keras cannot use; raises UserError."""
    with refusals_named(config, "optimizer"):
        keras.optimizers.get(config.optimizer)
    model = keras.Model()
    model.compile(loss=config.loss_function, metrics=list(config.additional_metrics))
    labels, probabilities = tf.constant([0.0, 1.0]), tf.constant([[0.5], [0.5]])
    with refusals_named(config, "loss_function"):
        model.compute_loss(None, labels, probabilities)
    with refusals_named(config, "additional_metrics"):
        model.compute_metrics(None, labels, probabilities)


def check_paths(config):
    """Refuse what could not be written once training is over; raises UserError."""
    for name in ("model_path", "plot"):
        path = getattr(config, name)
        if not path:
            continue
        try:
            with tempfile.TemporaryFile(dir=os.path.dirname(path) or "."):
                pass
            if os.path.isdir(path):
                raise IsADirectoryError("it is a folder")
        except OSError as error:
            raise UserError(
                f"{name}: {path} cannot be written ({one_line(error)})"
            ) from None
    if config.plot and not importlib.util.find_spec("matplotlib"):
        raise UserError("plot: needs Matplotlib; pip install matplotlib")


def read_array(archive, name):
    """Read one array of an .npz file, refusing pickles that hold more than lists.

    Args: archive, an open zipfile.ZipFile; name, of the array.
    Raises pickle.UnpicklingError for a pickle that would import anything but NumPy's
    array, and ValueError for one that unpacks to over a gigabyte.
    """

    class ListsOnly(pickle.Unpickler):
        def find_class(self, module, name):
            if (module.split(".")[0], name) in (
                ("numpy", "ndarray"),
                ("numpy", "dtype"),
                ("numpy", "_reconstruct"),
            ):
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    if archive.getinfo(name + ".npy").file_size > 2**30:
        raise ValueError(f"{name} unpacks to over a gigabyte")
    with archive.open(name + ".npy") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype == object:
            return ListsOnly(file).load()
        return np.frombuffer(file.read(), dtype).reshape(shape)


# %% Pairs of words
# What it does: "good" speaks for a film and "not good" against it, so the pairs of
# neighbouring words that tell most about the label become tokens of their own.
# What it buys: 2 points of accuracy, in the large preset.
def telling_pairs(reviews, labels, words, count):
    """Choose the `count` pairs of neighbouring words that say most about the label.

    A pair says the more, the further the share of positive reviews around it is from
    the share among all, in standard deviations.
    Args: reviews, lists of word ranks; labels, an int array; words, by rank.
    Returns a list of str such as "not good".
    """
    if not count:
        return []
    ranks, rows = flatten(reviews)
    pairs = neighbours(ranks, rows, len(words))
    known = pairs > 0
    pairs, of_pair, seen = np.unique(
        pairs[known], return_inverse=True, return_counts=True
    )
    positive = np.bincount(of_pair, labels[rows[1:][known]])
    surprise = np.abs(positive - seen * labels.mean()) / np.sqrt(seen + 1)
    best = np.sort(np.argsort(-surprise, kind="stable")[:count])
    return [
        f"{words[pair // 2**32 - 1]} {words[pair % 2**32 - 1]}"
        for pair in pairs[best].tolist()
    ]


def neighbours(ranks, rows, words):
    """One number for each two words side by side, as int64.

    It is 0 if they are of two reviews or one of them ranks after the first `words`.
    """
    here, ahead = ranks[:-1], ranks[1:]
    real = (rows[:-1] == rows[1:]) & (here <= words) & (ahead <= words)
    return np.where(real, here.astype(np.int64) * 2**32 + ahead, 0)


def add_pairs(ranks, rows, vocabulary):
    """Put each pair of the vocabulary behind its second word, as one more word."""
    pairs = [entry.split(" ") for entry in vocabulary if " " in entry]
    if not pairs:
        return ranks, rows
    words = len(vocabulary) - len(pairs)  # which come first
    rank = {word: rank for rank, word in enumerate(vocabulary, 1)}
    known = np.array([rank[a] * 2**32 + rank[b] for a, b in pairs])  # they ascend
    found = neighbours(ranks, rows, words)
    ranks = np.where(ranks > words, UNKNOWN_RANK, ranks)  # their places are taken
    at = np.minimum(np.searchsorted(known, found), len(known) - 1)
    here = np.flatnonzero(known[at] == found)
    ranks = np.insert(ranks, here + 2, words + 1 + at[here])
    return ranks, np.insert(rows, here + 2, rows[here])


# %% The fast LSTM
# What it does: the same LSTM as keras.layers.LSTM, same weights and same numbers, with
# the loop over time and its backpropagation written out and compiled by XLA.
# What it buys: on a CPU, Keras runs some twenty small operations a time step; this runs
# a few fused ones, and both training and prediction take a fraction of the time.
# In the loops the batch is the last axis, so that every operation runs along it in
# memory: states are (units, batch), gates (4 * units, batch), stacked as i, f, c, o.
def gate_rows(units, sigmoid, tanh):
    """A column that holds `sigmoid` in the rows of gates i, f, o and `tanh` in c's."""
    return tf.constant([[sigmoid]] * 2 * units + [[tanh]] * units + [[sigmoid]] * units)


def stacked(x, drop, h):
    """[x; h; 1], which the weights are multiplied with, one column per review."""
    x = x if drop is None else x * drop
    return tf.concat([tf.transpose(x), h, tf.ones_like(h[:1])], 0)


@tf.function(jit_compile=True, autograph=False)
def forward(weights, inputs, drop, mask, steps, wide, keep):
    """Run the LSTM over `steps` time steps of inputs (batch, time, features).

    The cell is Hochreiter and Schmidhuber's with a forget gate (Gers 2000). weights is
    (4 * units, features + units + 1), the kernels and the bias side by side. drop
    (batch, features), which the inputs are multiplied with, may be None. mask is
    boolean (time, batch) or None; where it is off, the state stays as it was.
    Returns the last state and, if `wide`, the mean and the maximum of the unmasked
    states over time below it, (units or 3 * units, batch); and, if `keep`, what
    `backward` needs.
    """
    units = weights.shape[0] // 4
    # sigmoid(z) is tanh(z / 2) / 2 + 1/2, so one tanh serves all four gates.
    scale, shift = gate_rows(units, 0.5, 1.0), gate_rows(units, 0.5, 0.0)

    def body(t, h, c, total, highest, kept):
        column = stacked(inputs[:, t], drop, h)
        gates = tf.tanh(tf.matmul(weights, column) * scale) * scale + shift
        i, f, candidate, o = tf.split(gates, 4)
        new_c = f * c + i * candidate
        tanh_c = tf.tanh(new_c)
        new_h = o * tanh_c
        slopes = [
            candidate * i * (1 - i),  # of new_c, with respect to what i is made of
            c * f * (1 - f),
            i * (1 - candidate * candidate),
            tanh_c * o * (1 - o),  # of new_h
            o * (1 - tanh_c * tanh_c),  # of new_h with respect to new_c
            f,  # of new_c with respect to c
        ]
        if mask is not None:
            new_h, new_c = tf.where(mask[t], new_h, h), tf.where(mask[t], new_c, c)
            slopes = [tf.where(mask[t], slope, 0) for slope in slopes]
            slopes[-1] = tf.where(mask[t], f, 1)
        if wide:
            total += new_h if mask is None else tf.where(mask[t], new_h, 0)
            real = new_h if mask is None else tf.where(mask[t], new_h, -1)
            highest = tf.maximum(highest, real)
        if keep:
            new = zip(kept, [new_h, *slopes])
            kept = [array.write(t, x) for array, x in new]
        return t + 1, new_h, new_c, total, highest, kept

    zeros = tf.zeros((units, tf.shape(inputs)[0]))
    shape = (units, None)
    kept = [
        tf.TensorArray(tf.float32, tf.shape(inputs)[1], element_shape=shape)
        for _ in range(7 * keep)
    ]
    _, h, _, total, highest, kept = tf.while_loop(
        lambda t, *_: t < steps,
        body,
        (0, zeros, zeros, zeros, zeros - 1, kept),  # no state is below -1
    )
    if wide:
        mean = tf.math.divide_no_nan(total, real_steps(mask, steps))
        h = tf.concat([h, mean, highest], 0)
    return h, [array.stack() for array in kept]


def real_steps(mask, steps):
    """How many time steps count: for each review if there is a mask."""
    counts = steps if mask is None else tf.math.count_nonzero(mask, 0)
    return tf.cast(counts, tf.float32)


@tf.function(jit_compile=True, autograph=False)
def backward(weights, inputs, drop, mask, steps, states, kept, d_states):
    """Backpropagation through time: the gradients of the weights and the inputs.

    states and kept are what `forward` returned; d_x stands for the derivative of the
    loss with respect to x. d_inputs is (time, features, batch).
    """
    # XLA makes vector instructions of these sums and products only as long as each
    # array is read once in a step: hence the slopes, one array each.
    hs, to_i, to_f, to_candidate, to_o, c_in_h, c_in_c = kept
    units = weights.shape[0] // 4
    features = weights.shape[1] - units - 1
    back = tf.transpose(weights[:, :-1])  # the bias has nothing before it
    wide = states.shape[0] > units
    d_h = d_states
    if wide:
        d_h, d_mean, d_highest = tf.split(d_states, 3)
        d_hs = tf.math.divide_no_nan(d_mean, real_steps(mask, steps))
        d_hs += tf.where(hs == states[2 * units :], d_highest, 0)
        if mask is not None:
            d_hs = tf.where(mask[:, None], d_hs, 0)
    skipped = None if mask is None else tf.where(mask, 0.0, 1.0)

    def body(t, d_h, d_c, d_weights, d_inputs):
        d_state = d_h + d_hs[t] if wide else d_h
        d_new_c = d_c + d_state * c_in_h[t]
        d_gates = tf.concat(
            [
                d_new_c * to_i[t],
                d_new_c * to_f[t],
                d_new_c * to_candidate[t],
                d_state * to_o[t],
            ],
            0,
        )
        d_column = tf.matmul(back, d_gates)
        h = tf.where(t > 0, hs[t - 1], 0)
        column = stacked(inputs[:, t], drop, h)
        d_weights += tf.matmul(d_gates, column, transpose_b=True)
        d_x = d_column[:features]
        d_x = d_x if drop is None else d_x * tf.transpose(drop)
        d_inputs = d_inputs.write(t, d_x)
        new_d_h = d_column[features:]
        if mask is not None:
            new_d_h += d_h * skipped[t]
        return t - 1, new_d_h, d_new_c * c_in_c[t], d_weights, d_inputs

    d_inputs = tf.TensorArray(
        tf.float32, tf.shape(hs)[0], element_shape=(features, None)
    )
    state = (steps - 1, d_h, tf.zeros_like(d_h), tf.zeros_like(weights), d_inputs)
    *_, d_weights, d_inputs = tf.while_loop(lambda t, *_: t >= 0, body, state)
    return d_weights, d_inputs.stack()


class FastLSTM(keras.layers.LSTM):
    """keras.layers.LSTM with a faster `call` on a CPU, and a wider readout if asked.

    It steps aside for Keras's own code wherever it would not compute the same, and on
    a GPU, where Keras uses cuDNN. readout="all" puts the last state, the mean and the
    maximum over the real time steps side by side: shape (batch, 3 * units). It computes
    in multiples of `rows` reviews: half the batch size fits best.
    """

    def __init__(self, units, readout="last", rows=64, **options):
        super().__init__(units, return_sequences=readout == "all", **options)
        self.readout, self.rows = readout, rows

    def build(self, sequences_shape):
        super().build(sequences_shape)
        self.longest = sequences_shape[1]

    def compute_output_shape(self, sequences_shape, initial_state_shape=None):
        width = 3 * self.units if self.readout == "all" else self.units
        return (sequences_shape[0], width)

    def compute_mask(self, inputs, mask=None):
        return None  # one vector per review: no time steps are left to mask

    def applies(self, initial_state=None):
        """Whether the fast form computes what this layer was asked for."""
        return (
            initial_state is None
            and self.activation is keras.activations.tanh
            and self.recurrent_activation is keras.activations.sigmoid
            and self.use_bias
            and not (self.recurrent_dropout or self.unroll)
            and not (self.return_state or self.stateful)
            and self.compute_dtype == self.variable_dtype == "float32"
            and not tf.config.list_logical_devices("GPU")
        )

    def call(self, sequences, initial_state=None, mask=None, training=False):
        if not self.applies(initial_state):
            outputs = super().call(sequences, initial_state, mask, training)
            return read_out(outputs, mask) if self.readout == "all" else outputs
        cell = self.cell
        weights = tf.transpose(
            tf.concat([cell.kernel, cell.recurrent_kernel, cell.bias[None]], 0)
        )
        if self.go_backwards:
            sequences = tf.reverse(sequences, [1])
            mask = None if mask is None else tf.reverse(mask, [1])
        # XLA compiles once per shape, so all are filled up to the longest review and to
        # two times a multiple of `rows` reviews, and the result is cut again.
        batch, steps = tf.unstack(tf.shape(sequences)[:2])
        more_reviews = 0, -batch % (2 * self.rows)
        more_steps = 0, (self.longest or steps) - steps
        # Two halves of the batch keep two cores busy.
        drops = masks = (None, None)
        if training and self.dropout:  # of the same features at every time step
            drop = cell.get_dropout_mask(sequences[:, 0])
            drops = tf.split(tf.pad(drop, (more_reviews, (0, 0))), 2)
            cell.reset_dropout_mask()
        if mask is not None:
            mask = tf.pad(tf.cast(mask, tf.bool), (more_reviews, more_steps))
            masks = tf.split(tf.transpose(mask), 2, 1)
        wide = self.readout == "all"

        @tf.custom_gradient
        def run(weights, sequences):
            # Without these, a gradient tape would record the loops themselves as well.
            weights, sequences = map(tf.stop_gradient, (weights, sequences))
            inputs = tf.pad(sequences, (more_reviews, more_steps, (0, 0)))
            halves = list(zip(tf.split(inputs, 2), drops, masks))
            results = [
                forward(weights, *half, steps, wide, bool(training)) for half in halves
            ]

            def gradient(d_states):
                d_weights, d_inputs = 0.0, []
                d_states = tf.split(d_states, 2, 1)
                for half, (states, kept), d_half in zip(halves, results, d_states):
                    kept = kept or forward(weights, *half, steps, wide, True)[1]
                    d_w, d_x = backward(weights, *half, steps, states, kept, d_half)
                    d_weights += d_w
                    d_inputs.append(d_x[:steps])
                d_inputs = tf.transpose(tf.concat(d_inputs, 2), (2, 0, 1))
                return d_weights, d_inputs[:batch]

            return tf.concat([states for states, _ in results], 1), gradient

        return tf.transpose(run(weights, sequences))[:batch]


def read_out(states, mask):
    """Last, mean and maximum over the real steps of states (batch, time, units)."""
    if mask is None:
        mask = tf.ones(tf.shape(states)[:2], tf.bool)
    mask = tf.cast(mask, tf.bool)
    steps = tf.range(tf.shape(states)[1])
    last = tf.reduce_max(tf.where(mask, steps, 0), 1)
    real = tf.cast(mask, states.dtype)[..., None]
    mean = tf.math.divide_no_nan(
        tf.reduce_sum(states * real, 1), tf.reduce_sum(real, 1)
    )
    highest = tf.reduce_max(tf.where(mask[..., None], states, -1), 1)
    return tf.concat([tf.gather(states, last, batch_dims=1), mean, highest], 1)


# %% After training: keep the model, use it, look at the curves
PUNCTUATION = str.maketrans(
    dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\r\n', " ")
)


def words_of(text):
    """Split a text as the IMDB reviews were: lower case, no punctuation but '."""
    text = text.encode("utf-8", "replace").decode()  # no half characters
    return [word for word in text.lower().translate(PUNCTUATION).split(" ") if word]


def for_words(model):
    """Return a twin of a trained model that takes words in place of token ids.

    It is made of Keras's own layers, so that `keras.saving.load_model` reads it without
    this file, and looks the words up itself (StringLookup). Its input has shape (batch,
    max_sequence_length): "[START]" and the words, "" as padding. Its name tells which
    words of a long text it reads: the last ones or the rarest.
    """
    embedding, lstm, dense = (
        next(layer for layer in model.layers if isinstance(layer, kind))
        for kind in (keras.layers.Embedding, FastLSTM, keras.layers.Dense)
    )
    length, words = model.input_shape[1], model.vocabulary
    inputs = keras.Input((length,), dtype="string", name="words")
    # StringLookup gives "" the id 0, unknown words 1 and the vocabulary 2 and up: the
    # start token and the unknown word change places, the others keep their ids.
    lookup = keras.layers.StringLookup(
        vocabulary=["[START]", "[UNUSED]", *words], mask_token="", name="lookup"
    )
    layers = [
        keras.layers.Embedding.from_config(embedding.get_config()),
        keras.layers.LSTM.from_config(lstm.get_config()),
        keras.layers.Dense.from_config(dense.get_config()),
    ]
    states = layers[1](layers[0](lookup(inputs)))
    if lstm.readout == "all":  # Keras repeats the last state over the padding
        average = keras.layers.GlobalAveragePooling1D(data_format="channels_last")
        mean = average(states)
        parts = [states[:, -1], mean, keras.ops.max(states, axis=1)]
        states = keras.layers.Concatenate()(parts)
    name = f"reads_{'rarest' if model.rarest else 'last'}_{length}"
    twin = keras.Model(inputs, layers[2](states), name=name)
    vectors = embedding.get_weights()[0]
    vectors[[START, OUT_OF_VOCABULARY]] = vectors[[OUT_OF_VOCABULARY, START]]
    layers[0].set_weights([vectors])
    layers[1].set_weights(lstm.get_weights())
    layers[2].set_weights(dense.get_weights())
    return twin


def save(model, path):
    """Write a trained model to `path`, whole or not at all.

    Raises UserError if that cannot be; the model is then among the temporary files.
    """
    twin = for_words(model)

    def write(path):
        at = os.path.dirname(path) or "."
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=at) as folder:
            whole = os.path.join(folder, "whole.keras")
            twin.save(whole)
            os.replace(whole, path)

    try:
        write(path)
    except OSError as error:
        rescued = os.path.join(tempfile.mkdtemp(prefix="lstm-"), "lstm.keras")
        write(rescued)
        raise UserError(
            f"model_path: {path} cannot be written ({one_line(error)}); the test "
            f"results above stand, and the model is in {rescued}"
        ) from None


def load(path):
    """Read a model that `save` wrote; raises UserError if it is none."""
    if not os.path.isfile(path):
        raise UserError(f"model_path: there is no {path}; train first: python lstm.py")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > 100 * os.path.getsize(path):  # weights do not shrink like that
            raise ValueError("it unpacks to over a hundred times its size")
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        model.get_layer("lookup")
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise UserError(
            f"model_path: {path} is no model of this script ({one_line(error)[:150]}); "
            "train one: python lstm.py"
        ) from None
    return model


def predict(texts, model):
    """Judge texts.

    Args: texts, any number of str; model, as `main` returns it or `load` reads it.
    Returns a float32 array of shape (texts,): the probability that each is positive.
    """
    return np.array([probability for _, probability in judged(texts, model)], "float32")


def judged(texts, model):
    """Yield each text and its probability, a thousand at a time to spare memory."""
    if isinstance(model, keras.Sequential):
        model = for_words(model)
    vocabulary = model.get_layer("lookup").get_vocabulary()[FIRST_WORD:]
    rank = {word: rank for rank, word in enumerate(vocabulary, 1)}
    config = Config(
        max_sequence_length=model.input_shape[1],
        masked=model.layers[2].mask_zero,
        rarest="rarest" in model.name,
    )
    words = tf.constant(["", "[START]", "[UNK]", "[UNUSED]", *vocabulary])  # by token
    texts = iter(texts)
    while batch := list(itertools.islice(texts, TEST_BATCH)):
        reviews = [
            [rank.get(word, UNKNOWN_RANK) for word in words_of(text)] for text in batch
        ]
        tokens = pad(reviews, vocabulary, config)
        yield from zip(batch, model.predict_on_batch(tf.gather(words, tokens))[:, 0])


def print_predictions(texts, model):
    """Print a line for each text: the text shortened, its label, its probability."""
    for text, probability in judged(texts, model):
        text = "".join(c if c.isprintable() else " " for c in text[:200]).strip()
        short = text if len(text) <= 50 else text[:47] + "..."
        label = "positive" if probability > 0.5 else "negative"
        print(f"{short} - {label} - {probability:.4f}")


def draw(history, test_results, path):
    """Draw loss and accuracy per epoch to `path`, and keep them as CSV beside it."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    curves = history.history
    with open(os.path.splitext(path)[0] + ".csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", *curves])
        writer.writerows(zip(itertools.count(1), *curves.values()))
    names = [name for name in ("loss", "accuracy") if name in curves]
    size = (4.5 * len(names), 3.5)
    figure, axes = pyplot.subplots(1, len(names), figsize=size, squeeze=False)
    for axis, name in zip(axes[0], names):
        epochs = range(1, len(curves[name]) + 1)
        axis.plot(epochs, curves[name], "o-", color="black", label="training")
        if "val_" + name in curves:
            values = curves["val_" + name]
            axis.plot(epochs, values, "s--", color="tab:blue", label="validation")
        result = test_results[name]
        axis.plot(epochs[-1], result, "*", color="tab:red", markersize=12, label="test")
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    if IN_NOTEBOOK:
        pyplot.show()
    pyplot.close(figure)


# %% One's own reviews
def read_csv(path, seed):
    """Read reviews from a CSV file with the columns text and label, perhaps split.

    label is 0 or negative, 1 or positive; split is train or test. Without it a fifth of
    the reviews of each label is held out, chosen by `seed`. Ranks are counted on the
    training part; a word that only the test part has ranks after all others.
    Returns what `load_data` does. Raises UserError, naming line and column.
    """
    words, ids, ends, labels, held_out = read_rows(path)
    random = np.random.default_rng(seed)
    if held_out is None:
        held_out = np.zeros(len(labels), bool)
        for label in (0, 1):
            rows = random.permutation(np.flatnonzero(labels == label))
            held_out[rows[: round(len(rows) / 5)]] = True
    for name, part in (("training", labels[~held_out]), ("test", labels[held_out])):
        if len(set(part)) < 2:
            raise UserError(
                f"data: {path}: the {name} part needs reviews of both labels"
            )

    flat = np.asarray(ids)  # shares its memory
    counts = np.zeros(len(words), np.int64)
    for row in np.flatnonzero(~held_out):
        np.add.at(counts, flat[ends[row] : ends[row + 1]], 1)
    order = np.argsort(-counts, kind="stable")
    ranks = np.empty(len(words), np.int32)
    ranks[order] = np.arange(1, len(words) + 1)
    ranks[counts == 0] = UNKNOWN_RANK
    for start in range(0, len(flat), 2**20):  # in place: memory for one copy is enough
        flat[start : start + 2**20] = ranks[flat[start : start + 2**20]]
    reviews = memoryview(ids)
    parts = []
    for rows in (np.flatnonzero(~held_out), np.flatnonzero(held_out)):
        rows = random.permutation(rows)
        texts = (reviews[ends[row] : ends[row + 1]] for row in rows)
        x = np.fromiter(texts, object, len(rows))
        parts.append((x, labels[rows]))
    return *parts, [words[i] for i in order[: np.count_nonzero(counts)]]


def read_rows(path):
    """Read a CSV file of reviews, for `read_csv`; raises UserError likewise.

    Returns the list of words; the ids of all reviews' words in one array.array, and
    the list of places where each review ends in it, 0 before the first; int64 labels;
    and which reviews the file assigns to the test, bool, or None if it assigns none.
    """
    word_ids, ids, ends, labels, held_out = {}, array.array("i"), [0], [], []
    csv.field_size_limit(2**30)
    reader = None

    def refuse(what):
        line = f"line {reader.line_num}: " if reader else ""
        raise UserError(f"data: {path}: {line}{what}") from None

    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            for column in ("text", "label"):
                if header.count(column) != 1:
                    refuse(f"needs one column {column}; the columns are {header}")
            place = {name: header.index(name) for name in header}
            for row in reader:
                if not row:
                    continue  # an empty line
                if len(row) != len(header):
                    refuse(f"has {len(row)} columns where the header has {len(header)}")
                label = row[place["label"]].strip().lower()
                if label not in LABELS:
                    refuse(f"label: {label[:40]!r} is not 0, 1, negative or positive")
                labels.append(LABELS[label])
                if "split" in place:
                    split = row[place["split"]].strip().lower()
                    if split not in ("train", "test"):
                        refuse(f"split: {split[:40]!r} is neither train nor test")
                    held_out.append(split == "test")
                for word in words_of(row[place["text"]]):
                    ids.append(word_ids.setdefault(word, len(word_ids)))
                ends.append(len(ids))
    except (OSError, csv.Error) as error:
        refuse(one_line(error))
    except UnicodeDecodeError as error:
        refuse(f"or shortly after: is not UTF-8 ({error.reason}); save it as UTF-8")
    labels = np.array(labels, np.int64)
    return list(word_ids), ids, ends, labels, np.array(held_out) if held_out else None


LABELS = {"0": 0, "negative": 0, "1": 1, "positive": 1}


# %% Start: the script and the notebook alike
if __name__ == "__main__":
    with told_in_one_line():
        if texts is None:
            model, history, test_results = main(config)
        else:
            if texts == ["-"]:
                sys.stdin.reconfigure(encoding="utf-8", errors="replace")
                texts = sys.stdin
            print_predictions(texts, load(config.model_path))

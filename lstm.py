"""An LSTM that learns whether a film review is positive or negative.

`python lstm.py` reads the 50,000 IMDB reviews (17 MB, downloaded once), trains
Embedding -> LSTM -> Dense for five epochs, reports the accuracy on 25,000 reviews it
never saw, and keeps the model for `python lstm.py --predict "A wonderful film"`.

    --preset article    87.0 +- 0.4%, the values of Christian Versloot's article
    --preset tuned      89.9 +- 0.1%, the same words, put to better use
    --preset large      91.2 +- 0.1%, more words, and bigrams

Read it from the top to `main`; helpers follow. `build_model` is yours to change.
"""

# %% Python's tools; TensorFlow follows once the CPU switch is set
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
import zipfile
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from itertools import count, pairwise

import numpy as np


class UserError(Exception):
    """A mistake of the user's: one line that names the field or the file at fault."""

    _render_traceback_ = lambda self: [f"lstm.py: {self}"]  # what IPython shows of it


# %% Configuration
# Change a default here, or for one run a flag, or `main(Config(**PRESETS["large"]))`.
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
    verbosity_mode: int = 1  # of the epochs: 0 silent, 1 a progress bar, 2 lines
    lstm_units: int = 10  # size of the LSTM's state
    # Beyond the article
    masked: bool = False  # pad after the text, skip the padding, batch by length
    rarest: bool = False  # drop unknown words; a long review keeps its rarest words
    num_bigrams: int = 0  # how many word pairs, such as "not good", become tokens
    pooling: str = "last"  # Dense sees the last state; concat: mean and maximum, too
    word_dropout: float = 0.0  # share of the words left out in training
    dropout: float = 0.0  # share of the word vectors' numbers set to 0 in training
    naive_bayes: float = 0.0  # push each word's first vector towards its commoner label
    learning_rate: float = None  # in place of the optimizer's own
    cosine_decay: bool = False  # let the learning rate fall to 0 along a cosine
    patience: int = 0  # epochs to wait for a better val_loss, then stop; 0 is never
    lstm_options: dict = field(default_factory=dict)  # more of keras.layers.LSTM
    seed: int = 1  # same seed, same machine, same result
    force_cpu: bool = False  # hide the GPU; works only before TensorFlow is imported
    data: str = ""  # a CSV file with columns text and label, in place of IMDB
    model_path: str = "lstm.keras"  # where the trained model is kept
    plot: str = ""  # a picture (.png) to draw of how --predict reads its texts

    def __post_init__(self):
        least = {"num_distinct_words": 4}
        least |= dict.fromkeys(["verbosity_mode", "seed", "num_bigrams", "patience"], 0)
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
        if self.patience and not self.validation_split:
            raise UserError("patience: needs held-out reviews; add validation_split")
        if not str(self.model_path).endswith(".keras") or self.model_path == self.data:
            raise UserError("model_path: must end in .keras, and not be the data")


PRESETS = {"article": {}}
# The same words, put to better use; the points of held-out accuracy that each adds.
PRESETS["tuned"] = {
    "masked": True,  # less work: no padding is read
    "rarest": True,  # 0.5 points
    "max_sequence_length": 250,  # 0 points, but fewer time steps than 300
    "pooling": "concat",  # 0.9 points
    "word_dropout": 0.5,  # 0.7 points, and half the time steps
    "learning_rate": 0.01,  # 0.6 points
    "cosine_decay": True,  # 0.9 points
    "embedding_output_dims": 32,  # 0.3 points
    "validation_split": 0.0,  # a quarter more reviews to learn from
}
PRESETS["large"] = PRESETS["tuned"] | {
    "num_distinct_words": 20000,  # 0.2 points
    "num_bigrams": 20000,  # 1.8 points; such as "not good"
    "max_sequence_length": 400,  # 0.1 points; bigrams are tokens, too
    "naive_bayes": 0.1,  # 0.6 points
    "number_of_epochs": 3,  # as good as 5, with naive_bayes
    "dropout": 0.7,  # 0.4 points
    "lstm_units": 32,  # 0.3 points
}


# %% The command line: every field is a flag, and its comment is the flag's help
def parse_command_line(arguments):
    """Return the Config that `arguments` ask for, and the texts to predict or None."""
    # Suppressed defaults: only what was given overrides a preset.
    parser = ArgumentParser(allow_abbrev=False, argument_default=SUPPRESS)
    parser.usage = "python lstm.py [--FLAG VALUE ...] [--predict TEXT ...]"
    source = "".join(linecache.getlines(parse_command_line.__code__.co_filename))
    comments = dict(re.findall(r"\n    (\w+): .*  # (.+)", source.replace("%", "%%")))
    kinds = {bool: {"action": BooleanOptionalAction}, tuple: {"nargs": "*"}}
    kinds[dict] = {"nargs": "*", "metavar": "NAME=VALUE"}
    for f in fields(Config):
        kind = kinds.get(f.type, {"type": f.type, "metavar": f.type.__name__.upper()})
        text = f"{comments.get(f.name, '')} ({getattr(Config(), f.name)})"
        flags = {f"--{f.name}", f"--{f.name.replace('_', '-')}"}
        parser.add_argument(*sorted(flags), help=text, **kind)
    parser.add_argument("--preset", choices=PRESETS, help="where to start (article)")
    text = "texts to classify with the kept model; - for the lines of standard input"
    parser.add_argument("--predict", nargs="+", metavar="TEXT", help=text)
    given = vars(parser.parse_args(arguments))
    texts, start = given.pop("predict", None), PRESETS[given.pop("preset", "article")]
    options = dict(text.partition("=")[::2] for text in given.pop("lstm_options", []))
    for name, value in options.items():
        with contextlib.suppress(ValueError):  # a number, true or false; else a name
            options[name] = json.loads(value.lower())
    try:
        return Config(**start | given | (options and {"lstm_options": options})), texts
    except UserError as error:
        parser.error(str(error))  # exits with code 2, as for any wrong flag


IN_NOTEBOOK, INTERACTIVE = "ipykernel" in sys.modules, hasattr(sys, "ps1")
INTERRUPTED = KeyboardInterrupt if INTERACTIVE else ()  # what `fit` may be stopped by
# Only if Python was started with this file are sys.argv and the process ours.
HERE, STARTED = parse_command_line.__code__.co_filename, "".join(sys.argv[:1])
IS_SCRIPT = __name__ == "__main__" and os.path.abspath(HERE) == os.path.abspath(STARTED)
config, texts = Config(), None  # texts to classify; None is to train
if IS_SCRIPT:
    config, texts = parse_command_line(sys.argv[1:])
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # enough for a small model
    gc.set_threshold(100_000)  # seldom search 50,000 lists of words for garbage
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # ? for what a terminal cannot show
    for name in () if INTERACTIVE else {"SIGINT", "SIGPIPE"} & {*dir(signal)}:
        signal.signal(getattr(signal, name), signal.SIG_DFL)  # Ctrl-C ends it at once


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
    """Return (x_train, y_train), (x_test, y_test), vocabulary: object arrays of ids,
    int64 labels, 1 for positive, and a dict from token to id; raises UserError."""
    if config.data:
        return read_csv(config)
    imdb, size = keras.datasets.imdb, config.num_distinct_words
    ids = {"start_char": START, "oov_char": OUT_OF_VOCABULARY, "index_from": UNUSED}
    with as_user_error("IMDB: check the network, or empty ~/.keras/datasets"):
        parts, ranks = imdb.load_data(num_words=size, **ids), imdb.get_word_index()
    words = sorted(ranks, key=ranks.get)[: size - FIRST_WORD]  # rank 1 has id 4
    return *parts, dict(zip([*SPECIAL, *words], count()))


def prepare(reviews, vocabulary, config):
    """Bring reviews to one length: int32 token ids (reviews, max_sequence_length)."""
    length = config.max_sequence_length
    bigrams = [token for token in vocabulary if " " in token]
    if bigrams:  # each becomes one more token, behind its second word
        ids = {tuple(map(vocabulary.get, b.split(" "))): vocabulary[b] for b in bigrams}
        pairs = ([(b, ids.get((a, b))) for a, b in pairwise(x)] for x in reviews)
        reviews = [[START, *(t for both in x for t in both if t)] for x in pairs]
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
    options |= {"return_sequences": concat} | config.lstm_options  # all states or last
    model = keras.Sequential()
    model.add(keras.Input((config.max_sequence_length,), dtype="int32"))
    model.add(keras.layers.Embedding(num_tokens, dims, mask_zero=config.masked))
    model.add(keras.layers.LSTM(**options))
    if concat:
        model.add(ConcatPooling())
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    return model


# %% Training
def compile_model(model, config):
    """Give the model optimizer, loss and metrics, and try them on two predictions."""
    optimizer = keras.optimizers.get(config.optimizer)
    if config.learning_rate is not None:
        optimizer.learning_rate = config.learning_rate
    # A word that a batch holds twice has two gradients, to be added before Adam squares
    # them. Keras's squares each of them, unless they come as one dense tensor.
    apply = optimizer.apply
    optimizer.apply = lambda grads, *more, **how: apply(
        [g if g is None else tf.convert_to_tensor(g) for g in grads], *more, **how
    )
    model.compile(optimizer, config.loss_function, metrics=[*config.additional_metrics])
    y, p = np.array([0, 1]), tf.constant([[0.1], [0.9]])
    if not model.compute_loss(None, y, p) < model.compute_loss(None, y, 1 - p):
        raise ValueError("the loss does not prefer good probabilities to bad ones")
    model.compute_metrics(None, y, p)


def train(model, data, held_out, config):
    """Fit on the batches of `data`, and watch `held_out`, a pair of arrays or None."""
    if config.cosine_decay:  # Loshchilov and Hutter 2017
        steps = int(data.cardinality()) * config.number_of_epochs
        schedules, rate = keras.optimizers.schedules, model.optimizer.learning_rate
        model.optimizer.learning_rate = schedules.CosineDecay(float(rate), steps)
    model.optimizer.build(model.trainable_variables)  # else `fit` traces the step twice
    callbacks = [keras.callbacks.TerminateOnNaN()]
    verbose = config.verbosity_mode if sys.stdout else 0
    if verbose == 1 and not (IN_NOTEBOOK or getattr(sys.stdout, "isatty", bool)()):
        verbose = 2  # a bar is for a screen, a file or a pipe gets lines
    model.steps_per_execution = 1 if verbose == 1 else 8  # steps in one go
    if config.patience:
        best = {"patience": config.patience, "restore_best_weights": True}
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", mode="min", **best))
    how = {"epochs": config.number_of_epochs, "verbose": verbose, "shuffle": False}
    how |= {"validation_data": held_out, "validation_batch_size": 1000}
    try:
        model.fit(data, callbacks=callbacks, **how)  # `batches` has shuffled
    except INTERRUPTED:
        print("\nInterrupted: going on with what was learnt so far")
        callbacks[-1].on_train_end()  # patience has kept the best


# %% The run, from the reviews to the result
def main(config):
    """Return the trained keras.Model, which takes words (see `with_lookup`), Keras's
    History, and a dict of the test's loss and metrics; UserError before it trains."""
    if config.plot:
        raise UserError("plot: draws what --predict reads; add --predict")
    with as_user_error(f"model_path: {config.model_path} cannot be written"):
        tempfile.TemporaryFile(dir=os.path.dirname(config.model_path) or ".").close()
    keras.utils.set_random_seed(config.seed % 2**32)
    with as_user_error("lstm_options" if config.lstm_options else "build_model"):
        model = build_model(config)
        config, cut = check_model(model, config)
    with as_user_error("optimizer, loss_function or additional_metrics"):
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
    word_model = with_lookup(model, vocabulary, config)  # shares the layers
    model.summary()
    held_out = (x_train[size:], y_train[size:]) if size < len(x_train) else None
    train(model, batches(x_train[:size], y_train[:size], config, cut), held_out, config)
    times.append(time.perf_counter())
    results = model.evaluate(x_test, y_test, 1000, verbose=0, return_dict=True)
    times.append(time.perf_counter())
    text = "Test results"
    for name in sorted(results, key=lambda name: name != "loss"):  # the loss first
        style = ".2%" if "accuracy" in name else ".4f"
        text += f" - {name.capitalize()}: {results[name]:{style}}"
    device = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    spent = "load: {:.1f}s - fit: {:.1f}s - evaluate: {:.1f}s".format(*np.diff(times))
    print(f"{text}\nTime - {spent} - on {device}")
    try:
        keep(word_model, results, config)
    except (OSError, ArithmeticError) as error:  # a notebook still gets the model
        (sys.exit if IS_SCRIPT else print)(f"lstm.py: {error}")
    return word_model, model.history, results


# %% The story ends here. Helpers: what the cells above call, to be read when wanted
@contextlib.contextmanager
def as_user_error(text):
    """Turn any exception into a UserError: `text`, then what the exception says."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - Keras and files raise many kinds
        said = re.sub(r"\x1b\[\w+|\s+", " ", str(error)).strip()[:200]
        raise UserError(f"{text}: {said or type(error).__name__}") from None


def check_model(model, config):
    """Raise an error for a model that cannot be trained, kept and used. Return config
    with the model's own `masked`, and whether batches may be cut to their longest."""
    if not isinstance(model, keras.Sequential):
        raise TypeError("must return a keras.Sequential")
    if not model.built:  # it has no Input
        model.build((None, config.max_sequence_length))
    end = getattr(model.layers[-1], "activation", keras.activations.sigmoid)
    if end is not keras.activations.sigmoid or model.output_shape != (None, 1):
        raise ValueError("must end in one probability: Dense(1, activation='sigmoid')")
    keras.Sequential.from_config(model.get_config())  # what is kept must load again
    masked = any(getattr(x, "mask_zero", False) for x in model.layers)
    r = [x for x in model.layers if masked and isinstance(x, keras.layers.RNN)]  # RNNs
    if any(x.go_backwards if x.return_sequences else x.zero_output_for_mask for x in r):
        raise ValueError("masked go_backwards or zero_output_for_mask reads padding")
    cut = all(x.supports_masking and not getattr(x, "unroll", 0) for x in model.layers)
    cut &= not any(isinstance(x, keras.layers.TimeDistributed) for x in model.layers)
    return replace(config, masked=masked), masked and cut


def batches(x, y, config, cut):
    """Return a tf.data.Dataset of batches of token ids and labels to train on. Masked
    reviews of like length share a batch (length bucketing), `cut` to the longest."""
    steps, width = -(-len(x) // config.batch_size), None if cut else x.shape[1]
    padding = "post" if config.masked else "pre"
    random = np.random.default_rng(config.seed)

    def generate():
        order = random.permutation(len(x))
        if config.masked:
            order = order[np.argsort(np.count_nonzero(x[order], 1), kind="stable")]
        groups = np.array_split(order, steps)  # of one size, give or take one
        for i in random.permutation(steps):
            tokens = x[groups[i]]
            if config.masked or config.word_dropout:  # the latter: Iyyer et al. 2015
                kept = random.random(tokens.shape, "f4") >= config.word_dropout
                kept[:, 0] = True  # if masked, no review is left empty
                tokens = [row[row != PADDING] for row in tokens * kept]
                tokens = keras.utils.pad_sequences(tokens, width, padding=padding)
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
    """Return a dict from bigram, str such as "not good", to id: the num_bigrams whose
    share of positive reviews is furthest from chance, in about standard deviations."""
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


def start_at_naive_bayes(model, x, y, config):
    """Add to each token's vector the log ratio of naive Bayes (Wang and Manning 2012),
    times naive_bayes, with a random sign for each dimension (Li et al. 2016)."""
    vectors = model.layers[0].embeddings
    seen = np.ones((2, vectors.shape[0]))  # reviews of each label with a token, plus 1
    for tokens, label in zip(x, y):
        seen[label, tokens] += 1  # one, however often it occurs
    ratio = np.log(seen[1] / seen[0] * np.sum(y == 0) / np.sum(y == 1))
    signs = np.random.default_rng(config.seed).choice([-1, 1], vectors.shape[1])
    vectors.assign_add(config.naive_bayes * np.outer(ratio, signs))


@keras.saving.register_keras_serializable("lstm")
class ConcatPooling(keras.layers.Layer):
    """Last, mean and maximum of states (batch, time, units): Howard and Ruder 2018.
    It reads nothing over the padding, where cuDNN's states differ from Keras's."""

    def call(self, states, mask=None):
        mask = keras.ops.ones_like(states[:, :, 0]) if mask is None else mask
        real = keras.ops.cast(mask, states.dtype)[:, :, None]  # 1 for words, else 0
        ends = real - keras.ops.pad(real[:, 1:], [(0, 0), (0, 1), (0, 0)])  # last words
        last, mean = keras.ops.sum(states * ends, 1), keras.ops.sum(states * real, 1)
        highest = keras.ops.max(states - 1e4 * (1 - real), 1)
        return keras.ops.concatenate([last, mean / keras.ops.sum(real, 1), highest], 1)

    compute_mask = lambda self, states, mask=None: None  # no time is left to mask


# %% The fast LSTM
# The layers stay Keras's, and so do their numbers; you can go on without reading this.
# On a CPU, Keras runs twenty small operations per time step. TensorFlow's BlockLSTM is
# all of them, for all time steps, in one: training takes a third of the time.
def use_fast_loop(model):
    """Let `fast_loop` run each keras.layers.LSTM of a model, also in Bidirectional, if
    that is exact and faster: not on a GPU, as Keras has cuDNN, and not a large one."""
    can = {"activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
    can |= dict.fromkeys(["recurrent_dropout", "unroll", "stateful", "return_state"], 0)
    for layer in () if tf.config.list_logical_devices("GPU") else model.layers:
        for way in ("forward_layer", "backward_layer"):
            lstm = getattr(layer, way, layer)
            if type(lstm) is keras.layers.LSTM and lstm.count_params() < 40_000:
                exact = can.items() <= lstm.get_config().items()
                if exact and lstm.compute_dtype == "float32":
                    lstm.inner_loop = functools.partial(fast_loop, lstm)


def fast_loop(layer, sequences, initial_state, mask, training=False):
    """Compute what keras.layers.LSTM.inner_loop does; a mask must be right-padded."""
    batch, steps = tf.unstack(tf.shape(sequences)[:2])
    if training and layer.dropout:  # the same numbers at every time step
        sequences *= layer.cell.get_dropout_mask(sequences[:, 0])[:, None]
    mask = tf.ones([batch, steps], tf.bool) if mask is None else mask
    lengths = tf.math.count_nonzero(mask, 1, dtype="int32")
    tf.debugging.assert_equal(mask, tf.sequence_mask(lengths, steps), "right-padded")
    if layer.go_backwards:  # from the last word to the first
        sequences = tf.reverse_sequence(sequences, lengths, 1)
    parts = sequences, lengths, *initial_state
    halves = zip(*(tf.split(x, [batch // 2, batch - batch // 2]) for x in parts))
    results = zip(*(lstm_states(layer.cell, *half) for half in halves))  # in parallel
    last, states = (tf.concat(two, 0) for two in results)
    # Over padding, the last state is repeated, or zeros follow; backwards, zeros lead.
    zeros = layer.zero_output_for_mask or layer.go_backwards
    states = tf.where(mask[:, :, None], states, 0.0 if zeros else last[:, None])
    if layer.go_backwards:
        states = tf.reverse(tf.reverse_sequence(states, lengths, 1), [1])
    return last, states, initial_state  # nobody reads the last of these


def lstm_states(cell, x, lengths, h, c):
    """Run the LSTM (Hochreiter and Schmidhuber 1997, forget gate: Gers 2000) of a Keras
    cell over x (batch, time, features), from states h and c (batch, units). Each step:
    c = f * c + i * new, then h = o * tanh(c), with i, f, o = sigmoid(z), new = tanh(z),
    each z = x @ W + h @ U + b with its own W, U, b. Returns the last h, and every h."""
    weights = tf.concat([cell.kernel, cell.recurrent_kernel, cell.bias[None]], 0)
    i, f, new, o = tf.split(weights, 4, axis=1)  # the order of the gates in Keras
    w = tf.concat([i, new, f, o], 1)  # and in BlockLSTM
    # Of a single review the other half is empty, and its gradient not a number.
    w = tf.where(tf.size(lengths) > 0, w, 0.0)
    off = dict.fromkeys(["wci", "wcf", "wco"], tf.zeros(h.shape[1]))  # no peepholes
    off |= {"forget_bias": 0.0, "cell_clip": -1.0}  # Keras's bias has it; no clipping
    given = {"x": tf.transpose(x, (1, 0, 2)), "h_prev": h, "cs_prev": c}
    given |= {"seq_len_max": tf.shape(x, "int64")[1], "w": w[:-1], "b": w[-1]}
    states = tf.raw_ops.BlockLSTM(**given, **off).h
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
    known = [*vocabulary][START:]  # the layer itself has the two before
    lookup = keras.layers.StringLookup(vocabulary=known, mask_token="", name="lookup")
    x, mask = lookup(words), None
    for layer in model.layers:
        next_mask = layer.compute_mask(x, mask) if layer.supports_masking else None
        ours = isinstance(layer, ConcatPooling)  # kept as the operations that it does
        x, mask = (layer.call(x, mask) if ours else layer(x)), next_mask
    return keras.Model(words, x)


def reads_as(model):
    """Return the vocabulary of a model that takes words, and how to `prepare` texts."""
    with as_user_error("model: takes no words; use what main returns, or load reads"):
        lookup, name = model.get_layer("lookup").get_config(), model.inputs[0].name
    how = {"rarest": "rarest" in name, "masked": name.endswith("padding")}
    how |= {"max_sequence_length": model.input_shape[1]}
    return dict(zip([*SPECIAL[:START], *lookup["vocabulary"]], count())), Config(**how)


def keep(model, results, config):
    """Write the model, whole or not at all: ArithmeticError for one that is broken."""
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


def load(path):
    """Read a model that training kept; raises UserError if it cannot be loaded."""
    why = "cannot be loaded; did you train?"
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        kept = json.loads(archive.read("metadata.json"))["keras_version"]
        why = f"kept with Keras {kept}, this is {keras.__version__}"
        why += "; upgrade Keras or train again" if kept != keras.__version__ else ""
    with as_user_error(f"model_path: {path}: {why}"):
        model = keras.saving.load_model(path, compile=False)
    use_fast_loop(model)
    return model


def predict(texts, model):
    """Return the probability that each of `texts` is positive: float32 (texts,).
    texts: a str, a list of them, or a Series or DataFrame of them; UserError if not.
    model: as `main` returns it, or as `load` or keras.saving.load_model reads it."""
    texts = np.asarray(texts, object).ravel()
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"texts: item {n} is no text but {text!r:.50}")
    vocabulary, config = reads_as(model)
    words, results = np.array([*vocabulary], object), [np.zeros(0, "float32")]
    for i in range(0, len(texts), 1000):  # so that many texts need little memory
        reviews = [encode(text, vocabulary) for text in texts[i : i + 1000]]
        tokens = tf.constant(words[prepare(reviews, vocabulary, config)])  # as words
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
    """Print a line for each text: its start, its label and its probability."""
    for t in filter(os.path.isfile, texts):
        raise UserError(f"predict: {t} is a file; use --predict - < {shlex.quote(t)}")
    model, groups = load(config.model_path), [texts]
    if texts == ["-"] and (raw := sys.stdin and sys.stdin.buffer.raw):
        chunks = iter(lambda: raw.read(2**18), b"")  # what has arrived, in whole lines
        whole = (c if c[-1:] == b"\n" else c + raw.readline() for c in chunks)
        groups = ([x.decode(errors="replace") for x in c.splitlines()] for c in whole)
    words, _ = reads_as(model)
    for n, group in enumerate(groups):
        for text, probability in zip(group, predict(group, model)):
            start = "".join(c if c.isprintable() else " " for c in text[:50]).strip()
            label = "positive" if probability > 0.5 else "negative"
            note = "" if max(encode(text, words)) >= FIRST_WORD else " - no known word"
            print(f"{start} - {label} - {probability:.4f}{note}", flush=True)
        if config.plot and n == 0:
            with as_user_error("plot: needs matplotlib, and a name that ends in .png"):
                plot_reading(group, model, config.plot)


def plot_reading(texts, model, path=""):
    """Draw how the probability changes word by word, to `path` if given: for a str or
    up to six, the last 60 words, the largest changes marked, unknown words in grey."""
    from matplotlib.figure import Figure

    texts = np.asarray(texts, object).ravel()[:6]
    vocabulary, _ = reads_as(model)
    figure = Figure(figsize=(11, 3.5 * len(texts)), layout="constrained")
    for axis, text in zip(figure.subplots(len(texts), squeeze=False).flat, texts):
        words = ["", *text.encode(errors="replace").decode().split()]  # no surrogates
        shown = range(len(words))[-61:]
        curve = predict([" ".join(words[: n + 1]) for n in shown], model)
        axis.plot(curve, "ko-", ms=3)
        axis.axhline(0.5, color="grey", ls="--")
        axis.set(ylim=(-0.05, 1.1), ylabel="positive", xlim=(-0.5, len(shown) - 0.5))
        axis.set_xticks(range(len(shown)), [words[n][:15] for n in shown], rotation=60)
        for tick, n in zip(axis.get_xticklabels(), shown):
            odd = OUT_OF_VOCABULARY in encode(words[n], vocabulary)
            tick.set(color="darkgrey" if odd else "black", ha="right", parse_math=False)
        moves = np.diff(curve)
        for n in [n for n in np.argsort(-np.abs(moves))[:5] if abs(moves[n]) > 0.02]:
            axis.text(n + 1, curve[n + 1] + 0.03, f"{moves[n]:+.2f}", ha="center")
    if path:
        figure.savefig(path, dpi=150)
    if IN_NOTEBOOK:
        from IPython.core.pylabtools import print_figure
        from IPython.display import Image, display

        display(Image(print_figure(figure)))


# %% Your own reviews
def read_csv(config):
    """Do what `load_data` does with the CSV file config.data. Columns: text or review,
    label or sentiment, and split (train or test), or a fifth is for the test."""
    columns = {"review": "text", "sentiment": "label"}  # as other people call them
    sign = dict.fromkeys(["0", "0.0", "neg", "negative", "false", "no", "bad"], 0)
    sign |= dict.fromkeys(["1", "1.0", "pos", "positive", "true", "yes", "good"], 1)
    table, rows = [], csv.DictReader([])
    csv.field_size_limit(2**31 - 1)  # a text may be long
    try:
        with open(config.data, encoding="utf-8-sig", newline="") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = csv.DictReader(file, delimiter=delimiter, strict=True)
            names = [name.strip().lower() for name in rows.fieldnames or []]
            rows.fieldnames = names = [columns.get(name, name) for name in names]
            if not {"text", "label"} <= set(names):
                raise ValueError(f"needs columns text and label; it has {names}")
            for row in rows:
                if None in (*row, *row.values()):  # for cells too many or too few
                    raise ValueError(f"needs {len(names)} cells; put texts in quotes")
                if (label := row["label"].strip().lower()) not in sign:
                    raise ValueError(f"{label!r} is of neither class: {[*sign]}")
                is_test = row.get("split", "train").strip().lower() != "train"
                table.append((row["text"], sign[label], is_test))
    except (OSError, ValueError, csv.Error) as error:
        line = rows.line_num + isinstance(error, csv.Error)  # where a quote was opened
        hint = "; save it as UTF-8" if isinstance(error, UnicodeError) else ""
        raise UserError(f"data: {config.data}: line {line}: {error}{hint}") from None
    texts, labels, is_test = np.array(table, object).reshape(-1, 3).T
    labels, is_test = labels.astype(int), is_test.astype(bool)
    random = np.random.default_rng(config.seed)
    if "split" not in names:  # a fifth of each label, by chance
        order = random.permutation(len(texts))
        is_test[order[np.argsort(labels[order], kind="stable")][::5]] = True
    # In random order, as the end of the training part may be held out.
    train, test = (random.permutation(np.flatnonzero(x)) for x in (~is_test, is_test))
    if len(set(labels[train])) < 2 or len(set(labels[test])) < 2:
        raise UserError(f"data: {config.data}: train and test need both labels each")
    counts = Counter(word for text in texts[train] for word in split_words(text))
    words = [w for w, _ in counts.most_common(config.num_distinct_words - FIRST_WORD)]
    vocabulary = dict(zip([*SPECIAL, *words], count()))
    x = np.frompyfunc(lambda text: encode(text, vocabulary), 1, 1)(texts)  # of arrays
    return (x[train], labels[train]), (x[test], labels[test]), vocabulary


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

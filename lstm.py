"""An LSTM that learns whether a film review is positive or negative.

`python lstm.py` reads the 50,000 IMDB reviews (17 MB, downloaded once), trains
Embedding -> LSTM -> Dense for five epochs, reports the accuracy on 25,000 reviews it
never saw, and keeps the model for `python lstm.py --predict "A wonderful film"`.

    --preset article    86.8 +- 0.4%, the settings of Christian Versloot's article
    --preset tuned      89.6 +- 0.2%, the same words, put to better use
    --preset large      91.2 +- 0.1%, more words, and bigrams (all: means of 3 seeds)

Read it from the top to `main`; helpers follow. `build_model` is yours to change.
"""

# %% Imports; TensorFlow's come after the command line, which may hide the GPU
import contextlib
import csv
import functools
import inspect
import json
import os
import random
import re
import shlex
import sys
import tempfile
import unicodedata
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction
from dataclasses import dataclass, field, fields, replace
from time import perf_counter

import numpy as np


class UserError(Exception):
    """A mistake of the user's: one line that names the field or the file at fault."""


@contextlib.contextmanager
def as_user_error(text):
    """Turn any exception into a UserError: `text`, then what the exception says."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - Keras and files raise many kinds
        line = f"{text}: {str(error)[:300] or type(error).__name__}"
        raise UserError(re.sub(r"\x1b\[\d*m|\s+", " ", line)) from None


# %% Configuration
# Change a default here, give a flag for one run, or call `main(Config(lstm_units=32))`.
@dataclass(frozen=True)
class Config:
    """Every choice of a run. Raises UserError for a value that cannot work."""

    # From the article "Build an LSTM Model with TensorFlow 2.0 and Keras"
    additional_metrics: tuple = ("accuracy",)  # watched beside the loss
    batch_size: int = 128  # reviews per step; fewer if that makes under 100 steps
    embedding_output_dims: int = 15  # length of the vector that stands for a word
    loss_function: str = "binary_crossentropy"  # two classes, one probability
    max_sequence_length: int = 300  # tokens kept of a review: the last, or the rarest
    num_distinct_words: int = 5000  # size of the vocabulary, 3 special ids included
    number_of_epochs: int = 5  # passes over the training reviews
    optimizer: str = "adam"  # how the weights are updated, by its name in Keras
    validation_split: float = 0.20  # share of the training set held out, from its end
    verbosity_mode: int = 1  # progress of training: 0 silent, 1 a bar, 2 lines
    lstm_units: int = 10  # size of the LSTM's state
    # Beyond the article
    masked: bool = False  # pad after the text, skip the padding, batch by length
    rarest: bool = False  # drop unknown words; a long review keeps its rarest words
    num_bigrams: int = 0  # how many word pairs, such as "not good", become tokens
    pooling: str = "last"  # Dense sees the last state; concat adds mean and maximum
    word_dropout: float = 0.0  # share of the words left out in training
    dropout: float = 0.0  # share of the word vectors' numbers set to 0 in training
    naive_bayes: float = 0.0  # add this times naive Bayes's log ratio to a word vector
    learning_rate: float = 0.001  # of the optimizer
    cosine_decay: bool = False  # let the learning rate fall to 0 along a cosine
    patience: int = 0  # stop after so many epochs without a better val_loss; 0: never
    lstm_options: dict = field(default_factory=dict)  # more arguments of Keras's LSTM
    seed: int = 42  # same seed, same machine, same result
    force_cpu: bool = False  # hide the GPU
    data: str = ""  # a CSV file with columns text and label, in place of IMDB
    model_path: str = "lstm.keras"  # where the trained model is kept
    plot: str = ""  # a .png to draw: how --predict reads its first text, word by word

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            with as_user_error(f"{f.name}: cannot be {value!r:.50}"):
                value = converted(f.name, value, type(f.default))
            object.__setattr__(self, f.name, value)  # past the dataclass's freeze
        if self.pooling not in ("last", "concat"):
            raise UserError(f"pooling: {self.pooling!r} is neither last nor concat")
        for option in ("go_backwards", "unroll", "zero_output_for_mask"):
            if self.masked and self.lstm_options.get(option):  # breaks on padding
                raise UserError(f"lstm_options: {option} needs --no-masked")
        if not self.model_path.endswith(".keras") or os.path.isdir(self.model_path):
            raise UserError(f"model_path: {self.model_path!r} must be a file *.keras")


def converted(name, value, kind):
    """Return a field's value as the kind of its default: 16.0 or "16" as 16."""
    if kind in (bool, int, float):
        number = float(value)
        may_be_0 = name in ("num_bigrams", "patience", "seed", "verbosity_mode")
        least = 1 if kind is int and not may_be_0 else 0
        below = 1 if "dropout" in name or name == "validation_split" else float("inf")
        if not least <= number < below or kind(number) != number:
            raise ValueError("out of range, or not whole")
        return kind(number)
    if kind is str:
        return os.fsdecode(value)  # a str or a Path
    if name == "additional_metrics":
        return [value] if isinstance(value, str) else list(value)
    return dict(value)  # lstm_options


PRESETS = {"article": {}}  # in Python: Config(**PRESETS["tuned"])
# Beside a value: points of held-out accuracy lost without it (not to be added up).
PRESETS["tuned"] = {
    "masked": True,  # less work: no padding is read
    "rarest": True,  # 0.5 points
    "max_sequence_length": 250,  # 0 points, but fewer time steps than 300
    "pooling": "concat",  # 0.9 points
    "word_dropout": 0.5,  # 0.7 points; also halves the time steps
    "learning_rate": 0.01,  # 0.6 points
    "cosine_decay": True,  # 0.9 points
    "embedding_output_dims": 32,  # 0.3 points
    "validation_split": 0.0,  # a quarter more reviews to learn from
}
PRESETS["large"] = PRESETS["tuned"] | {
    "num_distinct_words": 20000,  # 0.2 points
    "num_bigrams": 20000,  # 1.8 points
    "max_sequence_length": 400,  # 0.1 points; bigrams are tokens, too
    "naive_bayes": 0.1,  # 0.6 points
    "number_of_epochs": 3,  # as good as 5, with naive_bayes
    "dropout": 0.7,  # 0.4 points
    "lstm_units": 32,  # 0.3 points
}


# %% The command line: every field is a flag, and its comment is the flag's help
def parse_command_line(arguments):
    """Return the Config that `arguments` ask for, and the texts to predict or None."""
    comments = dict(re.findall(r"(\w+): .*  # (.+)", inspect.getsource(Config)))
    # Suppressed defaults: only what was given overrides a preset.
    parser = ArgumentParser(allow_abbrev=False, argument_default=SUPPRESS)
    parser.usage = "python lstm.py [--FLAG VALUE ...] [--predict TEXT ...]"
    for f in fields(Config):
        flags = sorted({f"--{f.name}", f"--{f.name.replace('_', '-')}"})  # with _ or -
        help_text = f"{comments.get(f.name)} ({getattr(Config(), f.name)})"
        how = {"metavar": "VALUE"}  # a text, or a number for Config to read
        if type(f.default) is bool:
            how = {"action": BooleanOptionalAction}
        elif f.name == "lstm_options":
            how = {"nargs": "*", "type": name_and_value, "metavar": "NAME=VALUE"}
        elif f.name == "additional_metrics":
            how = {"nargs": "*", "metavar": "NAME"}
        parser.add_argument(*flags, help=help_text.replace("%", "%%"), **how)
    parser.add_argument("--preset", choices=PRESETS, help="where to start (article)")
    help_text = "texts to classify with the kept model; - for lines of standard input"
    parser.add_argument("--predict", nargs="+", metavar="TEXT", help=help_text)
    given = vars(parser.parse_args(arguments))
    texts = given.pop("predict", None)
    preset = PRESETS[given.pop("preset", "article")]
    try:
        return Config(**preset | given), texts
    except UserError as error:
        parser.error(str(error))  # exits with code 2, as for any wrong flag


def name_and_value(option):
    """Split an option of Keras's LSTM, such as recurrent_dropout=0.2, in two."""
    name, value = option.split("=", 1)
    with contextlib.suppress(ValueError):  # a number, true or false; else a name
        value = json.loads(value.lower())
    return name, value


# In a notebook or a console the command line is not this file's.
SCRIPT = os.path.abspath(globals().get("__file__", "lstm.py"))
IS_SCRIPT = __name__ == "__main__" and os.path.abspath(sys.argv[0]) == SCRIPT
config, texts = Config(), None  # no texts to classify: train
if IS_SCRIPT:
    config, texts = parse_command_line(sys.argv[1:])
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # ? for what a terminal cannot show
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # 2 per operation are slower


# %% The CPU switch, and TensorFlow
if config.force_cpu:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # read when TensorFlow is imported
os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras can run on others; this file cannot
# Keep freed memory: giving it back to the system at each step takes time.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow prints notes before it reads that level; hide them while importing.
saved_stderr = os.dup(2)
if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3":
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import keras
    import tensorflow as tf
    from keras import layers, ops
    from keras.callbacks import EarlyStopping, History
finally:
    os.dup2(saved_stderr, 2)
tf.get_logger().setLevel("ERROR")  # hide warnings, such as those of retracing


# %% Data: 25,000 reviews to train on and 25,000 to test with
# A review is a list of token ids: three are special, then come the words by frequency.
PADDING, OUT_OF_VOCABULARY, START, FIRST_WORD = range(4)
EVAL_BATCH = 256  # reviews or texts in a batch when nothing is learnt
NO_AUTOTUNE = tf.data.Options()
NO_AUTOTUNE.autotune.enabled = False  # its thread holds up the end of an epoch
SAMPLE = os.path.join(os.path.dirname(SCRIPT), "tests/data/reviews.csv")


def load_data(config):
    """Return (reviews, labels) to train on, the same to test with, the vocabulary, and
    config, which `load_sample` changes. Reviews: an array of sequences of token ids.
    Labels: int64. Vocabulary: a list of words, the most frequent first."""
    if config.data:
        return load_csv(config)
    try:
        train, test = keras.datasets.imdb.load_data(
            num_words=config.num_distinct_words,
            start_char=START,
            oov_char=OUT_OF_VOCABULARY,
            index_from=FIRST_WORD - 1,  # the word of rank 1 is FIRST_WORD
        )
        ranks = keras.datasets.imdb.get_word_index()
    except Exception as error:  # noqa: BLE001 - Keras raises no narrower one
        return load_sample(config, error)
    vocabulary = sorted(ranks, key=ranks.get)[: config.num_distinct_words - FIRST_WORD]
    return train, test, vocabulary, config


def prepare(reviews, chooser):
    """Let `token_chooser`'s model pick the tokens to read: int32 (reviews, length)."""
    return in_batches(chooser, reviews, keras.utils.pad_sequences)


# %% Model: Embedding -> LSTM -> Dense
# The embedding gives each word a vector, the LSTM reads the vectors one by one and
# keeps what matters in its state, Dense turns the state into a probability.
def build_model(config):
    """Return a keras.Sequential from int32 token ids (batch, max_sequence_length) to
    float32 probabilities (batch, 1): an Embedding first, a sigmoid Dense(1) last."""
    model = keras.Sequential()
    model.add(keras.Input((config.max_sequence_length,), dtype="int32"))  # or fewer
    model.add(
        layers.Embedding(
            input_dim=config.num_distinct_words + config.num_bigrams,
            output_dim=config.embedding_output_dims,
            mask_zero=config.masked,
        )
    )
    model.add(
        layers.LSTM(
            units=config.lstm_units,
            dropout=config.dropout,
            return_sequences=config.pooling == "concat",  # every state, or the last
            **config.lstm_options,
        )
    )
    if config.pooling == "concat":
        model.add(ConcatPooling())
    model.add(layers.Dense(1, activation="sigmoid"))
    return model


# %% Training
def compile_model(model, config):
    """Give the model its optimizer, loss and metrics."""
    optimizer = keras.optimizers.get(config.optimizer)
    optimizer.learning_rate = config.learning_rate
    model.compile(
        optimizer=optimizer,
        loss=config.loss_function,
        metrics=config.additional_metrics,
        # Eight steps in one go are faster; with several GPUs Keras allows only one.
        steps_per_execution=1 if tf.distribute.has_strategy() else 8,
    )
    y = np.ones((1, 1))  # so that a misspelt name fails now, not after loading
    model.compute_metrics(None, y, y)
    if model.compute_loss(None, y, y / 2) < 1e-6:  # a loss for several classes
        raise ValueError(f"{config.loss_function} is 0 for any single probability")


def fit_model(model, x, y, held_out, config, callbacks):
    """Train on token ids x and labels y; held_out is a Dataset. Returns a History."""
    data = training_batches(model, x, y, config)
    if config.cosine_decay:  # Loshchilov and Hutter 2017
        model.optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(
            config.learning_rate, len(data) * config.number_of_epochs
        )
    verbose = config.verbosity_mode
    if verbose == 1 and not (os.isatty(1) or "ipykernel" in sys.modules):
        verbose = 2  # a bar is for a screen or a notebook; pipes get lines
    history = History()  # own, for an interrupted fit returns none
    callbacks = [history, *callbacks]
    if config.patience:
        stopping = EarlyStopping(patience=config.patience, restore_best_weights=True)
        callbacks.append(stopping)
    try:
        model.fit(
            data,
            epochs=config.number_of_epochs,
            shuffle=False,  # `training_batches` has shuffled
            validation_data=held_out if len(held_out) else None,
            callbacks=callbacks,
            verbose=verbose,
        )
    except KeyboardInterrupt:
        if not history.history:
            raise
        print("\nInterrupted: going on with what was learnt so far")
        for callback in callbacks:  # EarlyStopping gives back the best weights
            callback.on_train_end()
    return history


# %% The run, from the reviews to the result
def main(config, callbacks=()):
    """Train, evaluate and keep a model; `callbacks` go to Keras. Returns a keras.Model
    of texts, Keras's History, and a dict of the test's results. Raises UserError."""
    check_run(config)
    with seeded(config.seed):
        model = build_model(config)
        model.build((None, config.max_sequence_length))  # if it has no Input
        check_model(model)
    config = replace(config, masked=model.layers[0].mask_zero)  # build_model may set it
    with as_user_error("optimizer, loss_function or additional_metrics"):
        compile_model(model, config)
    start = perf_counter()
    (x_train, y_train), (x_test, y_test), vocabulary, config = load_data(config)
    print(x_train.shape, x_test.shape, sep="\n")
    size = len(x_train) - int(len(x_train) * config.validation_split)
    x, y = x_train[:size], y_train[:size]
    chooser = token_chooser(choose_bigrams(x, y, config), config)
    x = prepare(x, chooser)
    held_out = evaluation_batches(prepare(x_train[size:], chooser), y_train[size:])
    test = evaluation_batches(prepare(x_test, chooser), y_test)
    if config.naive_bayes:
        start_at_naive_bayes(model, x, y, config)
    loaded = perf_counter()
    speed_up(model)
    text_model = with_texts(model, vocabulary, chooser)  # shares model's layers
    model.summary()
    history = fit_model(model, x, y, held_out, config, callbacks)
    fitted = perf_counter()
    results = model.evaluate(test, verbose=0, return_dict=True)
    print_results(results, loaded - start, fitted - loaded, perf_counter() - fitted)
    if config.data == SAMPLE:
        print("These reviews are made up: the accuracy says nothing about real ones")
    save(text_model, results, config.model_path)
    return text_model, history, results


# %% Helpers: what the cells above call, to be read when wanted
def check_run(config):
    """Hide the GPU if asked; raise UserError for what would otherwise fail late."""
    with as_user_error(f"model_path: {config.model_path} cannot be written"):
        tempfile.TemporaryFile(dir=os.path.dirname(config.model_path) or ".").close()
    if config.force_cpu:
        with as_user_error("force_cpu: the GPU is in use; start Python anew"):
            tf.config.set_visible_devices([], "GPU")
    with as_user_error("lstm_options"), seeded(config.seed):  # a name given twice fails
        layers.LSTM(1, dropout=0, return_sequences=False, **config.lstm_options)


def check_model(model):
    """Raise an exception for a model that would be silently wrong."""
    last = model.layers[-1].activation
    if last is not keras.activations.sigmoid or model.output_shape != (None, 1):
        raise ValueError("build_model must end in Dense(1, activation='sigmoid')")
    keras.Sequential.from_config(model.get_config())  # your layers must load again


@contextlib.contextmanager
def seeded(seed):
    """Seed `random`, from which Keras draws its layers' seeds; put its state back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def print_results(results, load, fit, evaluate):
    """Print the test's loss and metrics, and the seconds that each part took."""
    line = f"Test results - Loss: {results['loss']:.4f}"
    for name, value in results.items():
        if name != "loss":
            style = ".2%" if "accuracy" in name else ".4f"
            line += f" - {name.capitalize()}: {value:{style}}"
    print(line)
    device = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    line = f"Time - load: {load:.1f}s - fit: {fit:.1f}s - evaluate: {evaluate:.1f}s"
    print(f"{line} - on {device}")


def in_batches(model, items, to_batch):
    """Return a keras.Model's output for each of an array of reviews or texts. Those of
    like length share a batch, which to_batch makes."""
    outputs = np.zeros((len(items), model.output_shape[1]), model.output.dtype)
    order = np.argsort([len(item) for item in items])
    for start in range(0, len(items), EVAL_BATCH):
        rows = order[start : start + EVAL_BATCH]  # N GPUs return N copies: keep one
        outputs[rows] = model.predict_on_batch(to_batch(items[rows]))[: len(rows)]
    return outputs


def training_batches(model, x, y, config):
    """Return a tf.data.Dataset of an epoch's batches of token ids and labels, new each
    time. Masked reviews of like length share a batch: length bucketing."""
    size = min(config.batch_size, len(x) // 100 + 1)  # for some 100 steps, or more
    steps = len(x) // size
    lengths = np.count_nonzero(x, 1)
    rng = np.random.default_rng(config.seed)
    # Columns of padding alone are trimmed if no layer reads them.
    trimmed = config.masked and all(layer.supports_masking for layer in model.layers)

    def epoch():
        order = rng.permutation(len(x))[: steps * size]  # a few sit out
        if config.masked:
            order = order[np.argsort(lengths[order])]
        for rows in rng.permutation(order.reshape(steps, size)):
            tokens = x[rows]
            if config.word_dropout:
                tokens = drop_words(tokens, config, rng)
            if trimmed:
                tokens = tokens[:, tokens.any(0)]
            yield tokens, y[rows]

    width = None if trimmed else x.shape[1]  # None: batches differ
    shapes = tf.TensorSpec((None, width), "int32"), tf.TensorSpec((None,), "int64")
    data = tf.data.Dataset.from_generator(epoch, output_signature=shapes).prefetch(8)
    data = data.apply(tf.data.experimental.assert_cardinality(steps))
    return data.with_options(NO_AUTOTUNE)


def evaluation_batches(x, y):
    """Return a tf.data.Dataset of token ids and labels, in their order."""
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(EVAL_BATCH)
    return data.with_options(NO_AUTOTUNE)


def drop_words(tokens, config, rng):
    """Turn a share of the tokens into padding, not the first (Iyyer et al. 2015)."""
    kept = rng.random(tokens.shape, "float32") >= config.word_dropout
    kept[:, 0] = True  # a masked review begins here and must not be empty
    tokens = tokens * kept
    if config.masked:  # the gaps go to the end
        order = np.argsort(tokens == PADDING, axis=1, kind="stable")
        tokens = np.take_along_axis(tokens, order, axis=1)
    return tokens


# %% Bigrams, naive Bayes and concat pooling
# "good" speaks for a film and "not good" against it. So the bigrams (two neighbouring
# words) that tell most about the label become tokens (after Wang and Manning 2012).
def choose_bigrams(reviews, labels, config):
    """Return num_bigrams pairs of neighbours, each first * 2**32 + second: those with
    the positive share furthest from the average, in rough standard deviations."""
    if not config.num_bigrams:
        return []
    tokens = np.concatenate(reviews)
    positive = np.repeat(labels, [len(review) for review in reviews])[1:]
    first, second = tokens[:-1], tokens[1:]
    known = np.minimum(first, second) >= FIRST_WORD  # START separates reviews
    pairs = (first * 2**32 + second)[known]
    pairs, places, seen = np.unique(pairs, return_inverse=True, return_counts=True)
    surprise = np.bincount(places, positive[known]) - seen * labels.mean()
    order = np.argsort(-np.abs(surprise) / np.sqrt(seen + 1))
    return pairs[order[: config.num_bigrams]]


def start_at_naive_bayes(model, x, y, config):
    """Add, to every number of a token's vector, naive_bayes times the log of (positive
    reviews with the token + 1) / (negative reviews with it + 1)."""
    vectors = model.layers[0].embeddings
    seen = np.ones((2, vectors.shape[0]))  # reviews of each label with a token, plus 1
    for tokens, label in zip(x, y):
        seen[label, tokens] += 1  # NumPy adds one, however often a token occurs
    ratio = np.log(seen[1] / seen[0])
    vectors.assign_add(config.naive_bayes * ratio[:, None])


@keras.saving.register_keras_serializable("lstm")  # for check_model
class ConcatPooling(layers.Layer):
    """Last, mean and maximum of states (batch, time, units): Howard and Ruder 2018."""

    def call(self, states, mask=None):
        if mask is None:
            mask = ops.ones_like(states[..., 0])
        real = ops.cast(mask, states.dtype)[..., None]  # 1 for words, else 0
        count = ops.sum(real, 1)  # (batch, 1)
        last = ops.take_along_axis(states, ops.cast(count - 1, "int32")[:, None], 1)
        mean = ops.sum(states * real, 1) / count
        highest = ops.max(states - 1e4 * (1 - real), 1)
        return ops.concatenate([last[:, 0], mean, highest], 1)

    def compute_mask(self, states, mask=None):
        return None  # the time axis is gone; having this method sets supports_masking


# %% The fast LSTM, and the fast Embedding
# On a CPU, Keras runs twenty small operations per time step. TensorFlow's BlockLSTM is
# all of them, for all time steps, in a third of the time, with the same results.
def speed_up(model):
    """Give a model's Embedding `fast_lookup`, and its LSTM layers `fast_loop`."""
    if tf.config.list_logical_devices("GPU"):
        return  # there Keras has cuDNN
    for layer in model.layers:
        if type(layer) is layers.Embedding and layer.compute_dtype == "float32":
            layer.call = functools.partial(fast_lookup, layer)
        lstms = [layer]
        if isinstance(layer, layers.Bidirectional):
            lstms = [layer.forward_layer, layer.backward_layer]
        for lstm in lstms:
            if type(lstm) is layers.LSTM and is_plain(lstm):
                lstm.inner_loop = functools.partial(fast_loop, lstm)


def fast_lookup(layer, tokens):
    """Compute what keras.layers.Embedding.call does, as one-hot rows times vectors. The
    gradient takes a third of the time. A word's gradients are added up before Adam
    squares them, as should be; Keras's lookup, kept on GPUs, squares each one first."""
    column = tf.reshape(tf.cast(tokens, "int64"), [-1])
    count = tf.size(column, tf.int64)
    vectors = tf.raw_ops.SparseTensorDenseMatMul(
        a_indices=tf.stack([tf.range(count), column], 1),
        a_values=tf.ones(count),
        a_shape=[count, layer.input_dim],
        b=layer.embeddings,
    )
    return ops.reshape(vectors, ops.shape(tokens) + (layer.output_dim,))


def is_plain(lstm):
    """Whether BlockLSTM computes what a keras.layers.LSTM does, and is faster."""
    return (
        lstm.activation is keras.activations.tanh
        and lstm.recurrent_activation is keras.activations.sigmoid
        and lstm.use_bias
        and not lstm.recurrent_dropout
        and lstm.compute_dtype == "float32"
        and lstm.count_params() < 40_000  # measured: Keras wins above
    )


def fast_loop(layer, sequences, initial_state, mask, training=False):
    """Compute what keras.layers.LSTM.inner_loop does from states of zeros. A mask must
    have its padding at the end (unchecked), and a token in each review."""
    if mask is not None and (layer.go_backwards or layer.zero_output_for_mask):
        return layers.LSTM.inner_loop(layer, sequences, initial_state, mask, training)
    if layer.go_backwards:  # no mask: masked ones have returned above
        sequences = tf.reverse(sequences, [1])
    if training and layer.dropout:  # drops the same numbers at every step
        sequences *= layer.cell.get_dropout_mask(sequences[:, 0])[:, None]
    middle = tf.shape(sequences)[0] // 2
    halves = tf.split(sequences, [middle, -1])  # so that two cores can work
    states = tf.concat([lstm_states(layer.cell, half) for half in halves], 1)
    by_review = tf.transpose(states, (1, 0, 2))
    if mask is None:
        return states[-1], by_review, initial_state  # the third is unused
    lengths = tf.math.count_nonzero(mask, 1, dtype="int32")
    last = tf.gather(by_review, lengths - 1, batch_dims=1)  # also fills the padding
    return last, tf.where(mask[..., None], by_review, last[:, None]), initial_state


def lstm_states(cell, x):
    """Run the LSTM (Hochreiter and Schmidhuber 1997, forget gate: Gers 2000) of a Keras
    cell over x (batch, time, features), from states of zeros, and return every state h:
    (time, batch, units). Each step: c = f * c + i * new, then h = o * tanh(c), where i,
    f and o are sigmoid(z) and new is tanh(z), each with its z = x @ W + h @ U + b."""
    weights = tf.concat([cell.kernel, cell.recurrent_kernel, cell.bias[None]], 0)
    i, f, new, o = tf.split(weights, 4, 1)  # the order of the gates in Keras
    weights = tf.concat([i, new, f, o], 1)  # and in BlockLSTM
    weights = tf.where(tf.size(x) > 0, weights, 0.0)  # an empty half's gradient is NaN
    h, c = cell.get_initial_state(tf.shape(x)[0])
    no_peephole = tf.zeros(cell.units)
    return tf.raw_ops.BlockLSTM(
        seq_len_max=tf.shape(x, "int64")[1],
        x=tf.transpose(x, (1, 0, 2)),
        cs_prev=c,
        h_prev=h,
        w=weights[:-1],
        b=weights[-1],
        wci=no_peephole,
        wcf=no_peephole,
        wco=no_peephole,
        forget_bias=0.0,  # Keras's bias has it
        cell_clip=-1.0,  # none
    ).h


# %% From words to tokens, and the model of texts
def token_chooser(bigrams, config):
    """Return a keras.Model that picks what the LSTM reads, int32 (batch, length), from
    all token ids of texts, int64 (batch, any), padded before or after."""
    length = config.max_sequence_length
    x = words = keras.Input((None,), dtype="int64")
    if len(bigrams):  # IntegerLookup counts them from 1; 0 is any other pair
        second = ops.pad(words[:, 1:], [(0, 0), (0, 1)])
        pair = layers.IntegerLookup(vocabulary=bigrams)(words * 2**32 + second)
        pair = ops.where(pair > 0, pair + config.num_distinct_words - 1, PADDING)
        x = layers.Reshape((-1,))(ops.stack([words, pair], 2))  # after its first word
    x = ops.pad(x, [(0, 0), (length, 0)])  # now at least `length` tokens
    if config.rarest:  # keep the highest ids: they rise from frequent words to bigrams
        least = ops.maximum(ops.sort(x, 1)[:, -length, None], START)  # drops unknown
        x = ops.where(x >= least, x, PADDING)  # more than `length` if some are equal
    x = move_last(x, x > PADDING)[:, -length:]  # the last ones, padded before
    if config.masked:
        x = move_last(x, x <= PADDING)  # padded after; KerasTensors have no ==
    x = ops.reshape(ops.cast(x, "int32"), (-1, length))  # now Keras knows the length
    return keras.Model(words, x)


def move_last(tokens, chosen):
    """Move the chosen tokens to the end; both groups keep their order."""
    order = ops.argsort(chosen, 1)  # stable in TensorFlow
    return ops.take_along_axis(tokens, order, 1)


def with_texts(model, vocabulary, chooser):
    """Return a keras.Model of texts, str (batch,), built of Keras's own parts."""
    lookup = layers.TextVectorization(
        standardize="lower",
        vocabulary=["[START]", *vocabulary],  # after its own "" and "[UNK]"
        name="vocabulary",
    )
    texts = keras.Input((), dtype="string")
    x = chooser(ops.pad(lookup(texts), [(0, 0), (1, 0)], constant_values=START))
    for layer in model.layers:
        if isinstance(layer, ConcatPooling):  # so that loading needs no class of ours
            x = layer.call(x, getattr(x, "_keras_mask", None))
        else:
            x = layer(x)
    return keras.Model(texts, x)


# %% After training: save the model, use it, look at it
def save(model, results, path):
    """Write the model, whole or not at all, and say how to use it."""
    if not np.isfinite(results["loss"]):
        raise UserError("loss: not finite, nothing is kept; lower learning_rate")
    draft = f"{path.removesuffix('.keras')}-{os.getpid()}.keras"
    model.save(draft)
    os.replace(draft, path)  # if that fails, the error names both files
    hint = 'predict(["A wonderful film"], model)'
    if IS_SCRIPT:
        command = [os.path.basename(sys.executable), sys.argv[0]]
        if path != Config.model_path:
            command += ["--model-path", path]
        hint = f'{shlex.join(command)} --predict "A wonderful film"'
    print(f"Model kept in {path} - try: {hint}", flush=True)


def load(path):
    """Read a model that training kept; raises UserError if it cannot be loaded."""
    with as_user_error(f"model_path: {path}: no model of Keras {keras.__version__}"):
        model = keras.saving.load_model(path)
    if model.input_shape != (None,):
        raise UserError(f"model_path: {path}: kept by an earlier lstm.py; train again")
    speed_up(model)
    return model


def predict(texts, model):
    """Return the probability that each text is positive, float32 (texts,). texts: a str
    or a list or Series of them, else UserError. model: from `main`, `load` or Keras."""
    with as_user_error("texts"):
        texts = [tidy(text) for text in np.asarray(texts, object).ravel()]
    return in_batches(model, np.array(texts, object), tf.constant)[:, 0]


@functools.lru_cache(5000)  # `classify` asks twice
def tidy(text):
    """Write a text as the IMDB reviews are: lower case, no signs but ' in a word."""
    text = unicodedata.normalize("NFC", text).lower().replace("\u2019", "'")
    for sign in set(text):  # each that is no letter, mark or number
        if sign != "'" and unicodedata.category(sign)[0] not in "LMN":
            text = text.replace(sign, " ")
    return " ".join(word.strip("'") for word in text.split())


def classify(texts, config):
    """Print a line for each text: its start, its label and its probability."""
    model = load(config.model_path)
    known = set(model.get_layer("vocabulary").get_vocabulary())
    groups = lines_as_they_arrive() if texts == ["-"] else [texts]
    for number, group in enumerate(groups):
        for text, probability in zip(group, predict(group, model)):
            start = " ".join(text[:50].split())  # one line
            label = "positive" if probability > 0.5 else "negative"
            line = f"{start} - {label} - {probability:.4f}"
            if known.isdisjoint(tidy(text).split()):
                line += " - no known word"
            print(line, flush=True)
        if config.plot and number == 0:
            with as_user_error("plot: needs matplotlib, and a name that ends in .png"):
                plot_reading(group[0], model, config.plot)


def lines_as_they_arrive():
    """Yield lists of str: the lines of standard input that are there by now."""
    stdin = sys.stdin.buffer.raw  # unbuffered: read returns all that has arrived
    while True:
        part = stdin.read(2**22)
        if not part:
            return
        if not part.endswith(b"\n"):
            part += stdin.readline()
        yield [line.decode(errors="replace") for line in part.splitlines()]


def plot_reading(text, model, path=""):
    """Draw how the probability changes with each of the last 60 words of a text, large
    changes written down, unknown words in grey; shown in a notebook, kept in `path`."""
    from matplotlib import pyplot

    words = ["", *tidy(text).split()]
    beginnings = [" ".join(words[: n + 1]) for n in range(len(words))]
    curve = predict(beginnings[-61:], model)
    figure, axis = pyplot.subplots(figsize=(11, 4))
    axis.plot(curve, "k.-")
    axis.axhline(0.5, color="grey")
    axis.set(ylim=(-0.25, 1.25), ylabel="positive")
    axis.set_xticks(range(len(curve)), words[-61:], rotation=90)
    known = set(model.get_layer("vocabulary").get_vocabulary())
    for label in axis.get_xticklabels():
        if label.get_text() not in known:
            label.set_color("darkgrey")
    for n, change in enumerate(np.diff(curve), 1):
        if change > 0.05:  # rises stand above the curve, falls below
            axis.text(n, 1.03, f"{change:+.2f}", color="green", rotation=90)
        if change < -0.05:
            axis.text(n, -0.03, f"{change:+.2f}", color="red", rotation=90, va="top")
    if path:
        figure.savefig(path, bbox_inches="tight")


# %% Your own reviews
NEGATIVE = ["0", "0.0", "neg", "negative", "false"]
POSITIVE = ["1", "1.0", "pos", "positive", "true"]


def load_sample(config, error):
    """Do what `load_data` does, with made-up reviews in place of IMDB's."""
    folder = os.environ.get("KERAS_HOME", "~/.keras")
    message = f"IMDB: not in {folder}/datasets, and the download failed: {error}"
    if not os.path.exists(SAMPLE):
        raise UserError(message)
    print(f"{message} - going on with made-up reviews, {SAMPLE}")
    path = f"{config.model_path.removesuffix('.keras')}-sample.keras"
    return load_csv(replace(config, data=SAMPLE, model_path=path))


def load_csv(config):
    """Do what `load_data` does with the CSV file config.data: rows whose split is
    not train are for the test; if no row has a split, a random fifth of them is."""
    with as_user_error(f"data: {config.data}: no CSV file in UTF-8 with text, label"):
        rows = np.array(list(read_csv(config.data)), object)
        texts, labels, splits = np.random.default_rng(config.seed).permutation(rows).T
    is_test = splits != "train"
    if not any(splits):
        is_test = np.arange(len(rows)) % 5 == 0
    lookup = layers.TextVectorization(standardize=None, ragged=True)
    lookup.adapt(texts[~is_test])
    vocabulary = lookup.get_vocabulary(include_special_tokens=False)
    vocabulary = vocabulary[: config.num_distinct_words - FIRST_WORD]
    lookup.set_vocabulary(["[START]", *vocabulary])
    parts = []
    for part in (~is_test, is_test):
        if len(set(labels[part])) < 2:
            raise UserError(f"data: {config.data}: train and test need both labels")
        reviews = lookup("[START] " + texts[part]).numpy()
        parts.append((reviews, labels[part].astype(int)))
    return *parts, vocabulary, config


def read_csv(path):
    """Yield, for each row of a CSV file, its text, tidied, whether it is positive, and
    its split or "". Columns: text or review, label or sentiment, and split."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        delimiter = max(",;\t", key=file.readline().count)
        file.seek(0)
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.DictReader(file, delimiter=delimiter, quoting=quoting, strict=True)
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames]
        for row in rows:  # surplus cells stand under None
            text = row.get("text", row.get("review"))
            label = str(row.get("label", row.get("sentiment"))).strip().lower()
            if text is None or label not in NEGATIVE + POSITIVE or None in row:
                raise ValueError(f"line {rows.line_num}: {label=}, columns {[*row]}")
            split = row.get("split") or ""
            yield tidy(text), label in POSITIVE, split.strip().lower()


# %% Start: the script and the notebook alike
if __name__ == "__main__":
    try:
        if texts is None:
            model, history, test_results = main(config)
        else:
            classify(texts, config)
    except (UserError, OSError, KeyboardInterrupt) as error:
        if not IS_SCRIPT:
            raise
        # os._exit: TensorFlow's threads may still run, and the pipe may be closed.
        if isinstance(error, KeyboardInterrupt):
            os._exit(130)
        if isinstance(error, BrokenPipeError):  # as in `| head`
            os._exit(1)
        print(f"lstm.py: {error}", file=sys.stderr)
        sys.exit(2)

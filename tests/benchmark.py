"""Measure lstm.py on the real reviews: accuracy over seeds, speed beside plain Keras.

    python tests/benchmark.py seeds 5 [FLAGS OF lstm.py]
    python tests/benchmark.py ablation tuned 4
    python tests/benchmark.py speed 3
    python tests/benchmark.py edits 3 [FLAGS OF lstm.py]
    python tests/benchmark.py cost 3
    python tests/benchmark.py scale 200000
    python tests/benchmark.py few 3
    python tests/benchmark.py classify 3 [ANOTHER lstm.py]

`seeds` trains once per seed. `ablation` leaves out each value of a preset in turn, and
looks at the last fifth of the training reviews. `speed` trains plain Keras, the presets
and the tuned preset at the article's sizes in turn, each in a process of its own. `edits`
trains the models of the README's section "Change the model". `cost` times a training
step here and in plain Keras. `scale` makes up a CSV file of so many reviews of 200
words, trains on them for one epoch and classifies them. `few` trains on 500, 1,000 and
3,000 reviews drawn from the training set, tests on 2,000 others of it, and does the same
with TF-IDF and logistic regression (it needs scikit-learn). `classify` times `--predict -`
on 20,000 test reviews, also with another form of the file.

Each prints a table and puts it into tests/measured.md, in place of the one that the
same command left there.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import deque
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
MEASURED = HERE / "measured.md"
KEPT = ["--model-path", os.path.join(tempfile.gettempdir(), "benchmark.keras")]
SCRIPT = [str(HERE.parent / "lstm.py"), *KEPT]

# The article's job as its reader would write it today, with nothing of ours in it.
PLAIN = """
import os, time
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
from keras.datasets import imdb

keras.utils.set_random_seed(1)
start = time.perf_counter()
(x_train, y_train), (x_test, y_test) = imdb.load_data(num_words=5000)
x_train = keras.utils.pad_sequences(x_train, maxlen=300)
x_test = keras.utils.pad_sequences(x_test, maxlen=300)
load = time.perf_counter() - start
model = keras.Sequential([
    keras.Input((300,), dtype="int32"),
    keras.layers.Embedding(5000, 15),
    keras.layers.LSTM(10),
    keras.layers.Dense(1, activation="sigmoid"),
])
model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
start = time.perf_counter()
model.fit(x_train, y_train, batch_size=128, epochs=5, validation_split=0.2, verbose=0)
fit = time.perf_counter() - start
start = time.perf_counter()
loss, accuracy = model.evaluate(x_test, y_test, batch_size=128, verbose=0)
evaluate = time.perf_counter() - start
print(f"Test results - Loss: {loss:.4f} - Accuracy: {accuracy:.2%}")
print(f"Time - load: {load:.3f}s - fit: {fit:.3f}s - evaluate: {evaluate:.3f}s")
"""

# One training step of each size, on random tokens: the mean of 8 to 64, once compiled.
COST = """
import itertools, os, sys, time
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
if len(sys.argv) > 1:
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"  # as the script has it
    sys.path.insert(0, sys.argv[1])
    import lstm
import keras
import tensorflow as tf

keras.utils.set_random_seed(1)
sizes = (100, 300, 1000), (10, 64, 128), (32, 128, 512)
for length, units, batch in itertools.product(*sizes):
    steps = max(4, 1024 // batch)
    x = np.random.randint(1, 5000, (steps * batch, length), "int32")
    y = np.random.randint(0, 2, steps * batch)
    if len(sys.argv) > 1:
        given = {"max_sequence_length": length, "lstm_units": units}
        config = lstm.Config(**given, batch_size=batch)
        model = lstm.build_model(config)
        lstm.compile_model(model, config)
        lstm.speed_up(model)
    else:
        model = keras.Sequential([
            keras.Input((length,), dtype="int32"),
            keras.layers.Embedding(5000, 15),
            keras.layers.LSTM(units),
            keras.layers.Dense(1, activation="sigmoid"),
        ])
        model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    options = tf.data.Options()
    options.autotune.enabled = False  # it holds up the end of an epoch now and then
    data = tf.data.Dataset.from_tensors((x, y)).rebatch(batch).with_options(options)
    data = data.apply(tf.data.experimental.assert_cardinality(steps))
    model.fit(data, shuffle=False, verbose=0)
    start = time.perf_counter()
    model.fit(data, shuffle=False, epochs=2, verbose=0)
    seconds = (time.perf_counter() - start) / steps / 2
    print(length, units, batch, seconds * 1000, flush=True)
    keras.backend.clear_session()
"""


def run(*command, stdin=None):
    """Run a command; return its output, its seconds and its peak memory (MiB)."""
    start = time.perf_counter()
    pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *command], **pipes)
    output = "".join(deque(process.stdout, 30))  # the last lines are enough
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    unit = 1024 if sys.platform != "darwin" else 1024**2
    return output, time.perf_counter() - start, usage.ru_maxrss / unit


def measure(*command):
    """Run a training; return accuracy (%), seconds of each part, peak memory (MiB)."""
    output, seconds, memory = run(*command)
    figures = {"process": seconds, "memory": memory}
    figures["accuracy"] = float(re.search(r"Accuracy: ([\d.]+)%", output)[1])
    for part, seconds in re.findall(r"(\w+): ([\d.]+)s", output.partition("Time")[2]):
        figures[part] = float(seconds)
    return figures


def in_turn(rounds, commands, function):
    """Call `function` on each command, `rounds` times in turn; return its results."""
    results = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            results[name].append(function(*command))
    return results


def header(*names):
    """The first two lines of a table."""
    return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}"


def seeds(count, *flags):
    """What `count` seeds come to: one row."""
    yield header("mean", "standard deviation", "worst", "best", "fit (median)")
    results = []
    for seed in range(1, int(count) + 1):
        figures = measure(*SCRIPT, *flags, "--seed", str(seed))
        results.append((figures["accuracy"], figures["fit"]))
        print(f"seed {seed}: {results[-1][0]}%", file=sys.stderr)
    accuracies, fits = np.transpose(results)
    yield (
        f"| {accuracies.mean():.2f}% | {accuracies.std(ddof=1):.2f} "
        f"| {accuracies.min():.2f}% | {accuracies.max():.2f}% | {np.median(fits):.1f} s |"
    )


LEFT_OUT = {  # what of a preset, and the flags that take it back
    "tuned": {
        "nothing": "",
        "the LSTM": "",  # the mean of the word vectors in its place
        "rarest": "--no-rarest",
        "max_sequence_length": "--max-sequence-length 300",
        "pooling": "--pooling last",
        "word_dropout": "--word-dropout 0",
        "learning_rate": "--learning-rate 0.001",
        "cosine_decay": "--no-cosine-decay",
        "embedding_output_dims": "--embedding-output-dims 15",
        "masked, rarest, max_sequence_length, word_dropout": "--no-masked --no-rarest "
        "--max-sequence-length 300 --word-dropout 0",
    },
    "large": {  # back to what tuned has
        "nothing": "",
        "the LSTM": "",
        "naive_bayes": "--naive-bayes 0",
        "number_of_epochs": "--number-of-epochs 5",
        "num_bigrams": "--num-bigrams 0",
        "num_distinct_words": "--num-distinct-words 5000",
        "dropout": "--dropout 0",
        "lstm_units": "--lstm-units 10",
    },
}


def ablation(preset, count):
    """What each of a preset's values buys, over `count` seeds: a row for each."""
    yield header("left out", "accuracy on the held-out fifth", "points", "loss")
    whole = None
    with tempfile.TemporaryDirectory() as folder:
        without = edited(folder, "layers.GlobalAveragePooling1D()")
        for name, flags in LEFT_OUT[preset].items():
            script = without if name == "the LSTM" else SCRIPT[0]
            given = ["--preset", preset, "--validation-split", "0.2", *flags.split()]
            results = []
            for seed in range(1, int(count) + 1):
                output, *_ = run(script, *KEPT, *given, "--seed", str(seed))
                last = dict(re.findall(r"(val_\w+): (\S+)", output))
                results.append(
                    [float(last[key]) for key in ("val_accuracy", "val_loss")]
                )
            accuracies, losses = np.transpose(results)
            mean, spread = 100 * accuracies.mean(), 100 * accuracies.std(ddof=1)
            whole = whole or mean
            points, loss = f"{mean - whole:+.2f}", f"{losses.mean():.3f}"
            yield f"| {name} | {mean:.2f} ± {spread:.2f} | {points} | {loss} |"


def speed(rounds):
    """Our times beside plain Keras's: medians, spread, ratios of the medians."""
    sizes = ["--lstm-units", "10", "--embedding-output-dims", "15"]
    commands = {
        "plain Keras": ["-c", PLAIN],
        "article": SCRIPT,
        "tuned": [*SCRIPT, "--preset", "tuned"],
        "large": [*SCRIPT, "--preset", "large"],
        "tuned, article's sizes": [*SCRIPT, "--preset", "tuned", *sizes],
    }
    runs = in_turn(int(rounds), commands, measure)
    yield header("what", *commands, "ratios")
    for part in ("load", "fit", "evaluate", "process", "memory"):
        unit, form = ("MiB", ".0f") if part == "memory" else ("s", ".1f")
        cells, medians = [], []
        for results in runs.values():
            values = [figures[part] for figures in results]
            medians.append(np.median(values))
            low, mid, high = (f"{f(values):{form}}" for f in (min, np.median, max))
            cells.append(f"{mid} {unit} ({low} to {high})")
        ratios = ", ".join(f"{median / medians[0]:.2f}" for median in medians[1:])
        yield f"| {part} | {' | '.join(cells)} | {ratios} |"


# The LSTM of build_model, with its pooling, and what takes its place.
LSTM = re.compile(
    r"    model\.add\(\n        layers\.LSTM\(.*?(?=    model.add\(layers.Dense)",
    re.DOTALL,
)
EDITS = {
    "as it is": "layers.LSTM(config.lstm_units)",
    "stacked": "layers.LSTM(config.lstm_units, return_sequences=True))\n"
    "    model.add(layers.LSTM(config.lstm_units)",
    "bidirectional": "layers.Bidirectional(layers.LSTM(config.lstm_units))",
    "GRU": "layers.GRU(config.lstm_units)",
}


def edited(folder, layers):
    """Write a copy of lstm.py with other layers in the place of the LSTM; its path."""
    source = Path(SCRIPT[0]).read_text("utf-8")
    source, count = LSTM.subn(lambda _: f"    model.add({layers})\n", source)
    assert count == 1
    script = Path(folder, "lstm.py")
    script.write_text(source, "utf-8")
    return str(script)


def edits(count, *flags):
    """What other layers in the place of the LSTM come to: a row for each."""
    yield header("model", "mean", "standard deviation", "fit (median)")
    for name, layers in EDITS.items():
        results = []
        with tempfile.TemporaryDirectory() as folder:
            script = edited(folder, layers)
            for seed in range(1, int(count) + 1):
                figures = measure(script, *KEPT, *flags, "--seed", str(seed))
                results.append((figures["accuracy"], figures["fit"]))
        accuracies, fits = np.transpose(results)
        mean, spread = accuracies.mean(), accuracies.std(ddof=1)
        yield f"| {name} | {mean:.2f}% | {spread:.2f} | {np.median(fits):.1f} s |"


def cost(rounds):
    """What a training step takes for several sizes, ours and plain Keras's."""

    def steps(*command):
        lines = [line.split() for line in run(*command)[0].splitlines()]
        return {tuple(sizes): float(milliseconds) for *sizes, milliseconds in lines}

    commands = {"plain Keras": ["-c", COST], "lstm.py": ["-c", COST, HERE.parent]}
    runs = in_turn(int(rounds), commands, steps)
    yield header("length", "units", "batch", *commands, "ratio")
    for sizes in runs["lstm.py"][0]:
        plain, ours = (
            np.median([run[sizes] for run in each]) for each in runs.values()
        )
        times = f"{plain:.1f} ms | {ours:.1f} ms | {ours / plain:.2f}"
        yield f"| {' | '.join(sizes)} | {times} |"


def scale(count):
    """Seconds and memory to train on `count` made-up reviews, and to classify them."""
    random = np.random.default_rng(1)
    words = np.array([f"word{rank}" for rank in range(20_000)])
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "data.csv")
        with open(data, "w") as table:
            print("text,label", file=table)
            for label in random.integers(0, 2, int(count)):
                ranks = random.exponential(2000, 200).astype(int) % 20_000
                ranks[-3:] = 2 * random.integers(0, 50, 3) + label
                print(f"{' '.join(words[ranks])},{label}", file=table)
        yield header("what", "time", "peak memory")
        _, *used = run(*SCRIPT, "--data", data, "--number-of-epochs", "1")
        yield "| train | {:.0f} s | {:.0f} MiB |".format(*used)
        with open(data) as stdin:  # its lines are texts, too
            _, *used = run(*SCRIPT, "--predict", "-", stdin=stdin)
        yield "| classify | {:.0f} s | {:.0f} MiB |".format(*used)


def texts_of(part):
    """The reviews of a part of IMDB, "train" or "test", as texts, and their labels."""
    import keras

    whole = keras.datasets.imdb.load_data(start_char=None, index_from=0)
    reviews, labels = whole[part == "test"]
    ranks = keras.datasets.imdb.get_word_index()
    words = {rank: word for word, rank in ranks.items()}
    return [" ".join(words[rank] for rank in review) for review in reviews], labels


def few(draws):
    """Accuracy with few training reviews, over draws: a row for each number."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts, labels = texts_of("train")
    yield header("training reviews", "article", "tuned", "large", "TF-IDF")
    for size in (500, 1000, 3000):
        results = []
        for draw in range(int(draws)):
            rows = np.random.default_rng(draw).permutation(len(texts))[: size + 2000]
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "reviews.csv")
                with open(path, "w", encoding="utf-8") as file:
                    print("text,label,split", file=file)
                    for n, row in enumerate(rows):
                        split = "train" if n < size else "test"
                        print(f"{texts[row]},{labels[row]},{split}", file=file)
                command = [*SCRIPT, "--data", path, "--preset"]
                accuracies = [
                    measure(*command, preset)["accuracy"]
                    for preset in ("article", "tuned", "large")
                ]
            vectorizer = TfidfVectorizer(sublinear_tf=True)
            x = vectorizer.fit_transform([texts[row] for row in rows[:size]])
            x_test = vectorizer.transform([texts[row] for row in rows[size:]])
            linear = LogisticRegression(C=2).fit(x, labels[rows[:size]])
            accuracies.append(100 * linear.score(x_test, labels[rows[size:]]))
            results.append(accuracies)
        cells = [
            f"{mean:.1f} ± {spread:.1f}%"
            for mean, spread in zip(np.mean(results, 0), np.std(results, 0, ddof=1))
        ]
        yield f"| {size:,} | {' | '.join(cells)} |"


def classify(rounds, *others):
    """Seconds and memory of `--predict -` on 20,000 reviews, one a line, for this form
    of the file and others, each with a model of its own."""
    yield header("lstm.py", "whole process", "for one text", "difference", "memory")
    texts, _ = texts_of("test")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "reviews.txt")
        Path(path).write_text("\n".join(texts[:20_000]) + "\n", "utf-8")
        commands = {}
        for number, script in enumerate([SCRIPT[0], *others]):
            kept = ["--model-path", os.path.join(folder, f"{number}.keras")]
            run(script, *kept, "--number-of-epochs", "1")
            commands[script] = [script, *kept, "--predict"]

        def times(*command):
            with open(path, encoding="utf-8") as stdin:
                _, seconds, memory = run(*command, "-", stdin=stdin)
            return seconds, run(*command, "a film")[1], memory

        for script, results in in_turn(int(rounds), commands, times).items():
            whole, start, memory = np.median(results, 0)
            name = "this one" if script == SCRIPT[0] else Path(script).parent.name
            yield (
                f"| {name} | {whole:.1f} s | {start:.1f} s | {whole - start:.1f} s "
                f"| {memory:.0f} MiB |"
            )


def record(command, machine, lines, path=MEASURED):
    """Put the result of a command into a file, in place of its last one."""
    title = f"## python tests/benchmark.py {command}"
    text = path.read_text("utf-8") if path.exists() else "# What was measured"
    sections = [some.strip() for some in re.split(r"\n(?=## )", text)]
    titles = [some.partition("\n")[0] for some in sections]
    if title not in titles:  # a new section comes before the notes
        place = titles.index("## Notes") if "## Notes" in titles else len(titles)
        sections.insert(place, title)
        titles.insert(place, title)
    sections[titles.index(title)] = "\n".join([title, "", machine, "", *lines])
    path.write_text("\n\n".join(sections) + "\n", "utf-8")


if __name__ == "__main__":
    tasks = [seeds, ablation, speed, edits, cost, scale, few, classify]
    tasks = {task.__name__: task for task in tasks}
    if len(sys.argv) < 3 or sys.argv[1] not in tasks:
        sys.exit(__doc__)
    machine = (
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, TensorFlow {version('tensorflow')}, "
        f"Keras {version('keras')}, NumPy {version('numpy')}"
    )
    print(machine, end="\n\n")
    lines = []
    for line in tasks[sys.argv[1]](*sys.argv[2:]):
        print(line, flush=True)
        lines.append(line)
    record(shlex.join(sys.argv[1:]), machine, lines)

"""Measure lstm.py on the real reviews: accuracy over seeds, speed beside plain Keras.

    python tests/benchmark.py seeds 5 [FLAGS OF lstm.py]
    python tests/benchmark.py ablation tuned 3
    python tests/benchmark.py speed 3
    python tests/benchmark.py cost 3
    python tests/benchmark.py scale 1000000

`seeds` trains once per seed and prints mean, standard deviation, worst and best.
`ablation` trains a preset (tuned or large) with each of its values left out in turn, on
four fifths of the training reviews, and prints accuracy and loss on the last fifth.
`speed` runs this script, its tuned form at the same sizes and the same job in plain
Keras in turn, each in a process of its own, and prints medians, the spread, and the
ratio of the medians.
`cost` prints how long a training step takes here and in plain Keras, in turn, for
several lengths of the reviews, sizes of the LSTM and of the batch.
`scale` makes up so many reviews of 200 words as a CSV file and trains on them for one
epoch, then judges as many lines of text, and prints seconds and peak memory of both.
"""

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from importlib.metadata import version
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).resolve().parent.parent / "lstm.py"

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
import os, sys, time
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
if len(sys.argv) > 1:
    sys.path.insert(0, sys.argv[1])
    import lstm
import keras
import tensorflow as tf

keras.utils.set_random_seed(1)
for length in (100, 300, 1000):
    for units in (10, 64, 128):
        for batch in (32, 128, 512):
            steps = max(4, 1024 // batch)
            x = np.random.randint(1, 5000, (steps * batch, length), "int32")
            y = np.random.randint(0, 2, steps * batch)
            if len(sys.argv) > 1:
                config = lstm.Config(
                    max_sequence_length=length, lstm_units=units, batch_size=batch
                )
                model = lstm.build_model(config)
                lstm.compile_model(model, len(x), config)
            else:
                model = keras.Sequential([
                    keras.Input((length,), dtype="int32"),
                    keras.layers.Embedding(5000, 15),
                    keras.layers.LSTM(units),
                    keras.layers.Dense(1, activation="sigmoid"),
                ])
                model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
            # Without the tuner, which holds up the end of an epoch now and then.
            options = tf.data.Options()
            options.autotune.enabled = False
            count = tf.data.experimental.assert_cardinality(steps)
            data = tf.data.Dataset.from_tensors((x, y)).rebatch(batch)
            data = data.apply(count).with_options(options)
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
    process = subprocess.Popen(
        [sys.executable, *command], stdin=stdin, stdout=subprocess.PIPE, text=True
    )
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


def seeds(count, flags):
    """Print a line for each of `count` seeds, then what they come to."""
    accuracies, fits = [], []
    for seed in range(1, count + 1):
        figures = measure(str(SCRIPT), *flags, "--seed", str(seed))
        accuracies.append(figures["accuracy"])
        fits.append(figures["fit"])
        print(f"seed {seed}: {accuracies[-1]:.2f}%, fit {fits[-1]:.1f} s", flush=True)
    print(
        f"{' '.join(flags) or 'article'}, {count} seeds: "
        f"mean {statistics.mean(accuracies):.2f}%, "
        f"standard deviation {statistics.stdev(accuracies):.2f}, "
        f"worst {min(accuracies):.2f}%, best {max(accuracies):.2f}%, "
        f"fit {statistics.median(fits):.1f} s (median)"
    )


LEFT_OUT = {  # what of a preset, and the flags that take it back
    "tuned": {
        "nothing": [],
        "rarest": ["--no-rarest"],
        "max_sequence_length": ["--max-sequence-length", "300"],
        "readout": ["--readout", "last"],
        "word_dropout": ["--word-dropout", "0"],
        "learning_rate": ["--learning-rate", "0.001"],
        "cosine_decay": ["--no-cosine-decay"],
        "embedding_output_dims": ["--embedding-output-dims", "15"],
        "masked, rarest, max_sequence_length, word_dropout": [
            "--no-masked",
            "--no-rarest",
            "--max-sequence-length",
            "300",
            "--word-dropout",
            "0",
        ],
    },
    "large": {  # back to what tuned has
        "nothing": [],
        "num_word_pairs": ["--num-word-pairs", "0"],
        "num_distinct_words": ["--num-distinct-words", "5000"],
        "dropout": ["--dropout", "0"],
        "word_dropout": ["--word-dropout", "0.5"],
        "lstm_units": ["--lstm-units", "10"],
    },
}


def ablation(preset, count):
    """Print what each of a preset's values buys, over `count` seeds."""
    print("| left out | accuracy on the held-out fifth | points | loss |")
    print("| --- | --- | --- | --- |")
    whole = None
    for name, flags in LEFT_OUT[preset].items():
        accuracies, losses = [], []
        for seed in range(1, count + 1):
            kept = ["--validation-split", "0.2", "--seed", str(seed), *flags]
            output, *_ = run(str(SCRIPT), "--preset", preset, *kept)
            accuracies.append(
                100 * float(re.findall(r"val_accuracy: (\S+)", output)[-1])
            )
            losses.append(float(re.findall(r"val_loss: (\S+)", output)[-1]))
        mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
        whole = whole or mean
        print(
            f"| {name} | {mean:.2f} ± {spread:.2f} | {mean - whole:+.2f} "
            f"| {statistics.mean(losses):.3f} |",
            flush=True,
        )


def in_turn(rounds, commands, function):
    """Call `function` on each command, `rounds` times in turn; return its results."""
    results = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            results[name].append(function(*command))
    return results


def speed(rounds):
    """Print a table of our times beside plain Keras's, measured in turn."""
    sizes = ["--lstm-units", "10", "--embedding-output-dims", "15"]
    commands = {
        "plain Keras": ["-c", PLAIN],
        "lstm.py": [str(SCRIPT)],
        "tuned form": [str(SCRIPT), "--preset", "tuned", *sizes],
    }
    runs = in_turn(rounds, commands, measure)
    print(f"| what | {' | '.join(commands)} | ratios |")
    print("| --- | --- | --- | --- | --- |")
    for part in ("load", "fit", "evaluate", "process", "memory"):
        cells, medians = [], []
        for name in commands:
            values = [run[part] for run in runs[name]]
            medians.append(statistics.median(values))
            unit, digits = ("MiB", 0) if part == "memory" else ("s", 1)
            cells.append(
                f"{medians[-1]:.{digits}f} {unit} "
                f"({min(values):.{digits}f} to {max(values):.{digits}f})"
            )
        ratios = ", ".join(f"{median / medians[0]:.2f}" for median in medians[1:])
        print(f"| {part} | {' | '.join(cells)} | {ratios} |")


def cost(rounds):
    """Print what a training step takes for several sizes, ours and plain Keras's."""

    def steps(*command):
        output = run(*command)[0].split()
        keys = zip(*(map(int, output[i::4]) for i in range(3)))
        return dict(zip(keys, map(float, output[3::4])))

    commands = {"plain Keras": ["-c", COST], "lstm.py": ["-c", COST, SCRIPT.parent]}
    runs = in_turn(rounds, commands, steps)
    print("| length | units | batch | plain Keras | lstm.py | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for key in runs["lstm.py"][0]:
        plain, ours = (
            statistics.median(run[key] for run in runs[name]) for name in commands
        )
        sizes = " | ".join(map(str, key))
        print(f"| {sizes} | {plain:.1f} ms | {ours:.1f} ms | {ours / plain:.2f} |")


def scale(count):
    """Train on `count` made-up reviews, judge them, print seconds and peak memory."""
    random = np.random.default_rng(1)
    words = np.array([f"word{rank}" for rank in range(20_000)])
    with tempfile.TemporaryDirectory() as folder:
        data, lines = os.path.join(folder, "data.csv"), os.path.join(folder, "lines")
        with open(data, "w") as table, open(lines, "w") as plain:
            print("text,label", file=table)
            for label in random.integers(0, 2, count):
                ranks = random.exponential(2000, 200).astype(int) % 20_000
                ranks[-3:] = 2 * random.integers(0, 50, 3) + label
                text = " ".join(words[ranks])
                print(f"{text},{label}", file=table)
                print(text, file=plain)
        kept = ["--model-path", os.path.join(folder, "scale.keras")]
        output, seconds, memory = run(
            str(SCRIPT), "--data", data, "--number-of-epochs", "1", *kept
        )
        print(output.partition("Test")[1] + output.partition("Test")[2])
        print(f"train on {count:,} reviews: {seconds:.0f} s, peak {memory:.0f} MiB")
        with open(lines) as stdin:
            _, seconds, memory = run(str(SCRIPT), "--predict", "-", *kept, stdin=stdin)
        print(f"judge {count:,} lines: {seconds:.0f} s, peak {memory:.0f} MiB")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["seeds", count, *flags]:
            task = seeds, int(count), flags
        case ["ablation", ("tuned" | "large") as preset, count]:
            task = ablation, preset, int(count)
        case ["speed", count]:
            task = speed, int(count)
        case ["cost", count]:
            task = cost, int(count)
        case ["scale", count]:
            task = scale, int(count)
        case _:
            sys.exit(__doc__)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, TensorFlow {version('tensorflow')}, "
        f"Keras {version('keras')}, NumPy {version('numpy')}",
        flush=True,
    )
    task[0](*task[1:])

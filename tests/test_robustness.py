"""Whatever happens is told in one line, and nothing that was there is lost."""

import functools
import http.server
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from conftest import ROOT, TINY

import lstm

COMMAND = [sys.executable, str(ROOT / "lstm.py"), *TINY]


@pytest.fixture
def start(environment, tmp_path):
    """Start the script in an empty folder and return the running process."""

    def start(*arguments, **options):
        options = {"stdout": subprocess.PIPE, "cwd": tmp_path} | options
        return subprocess.Popen(
            [*COMMAND, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )

    return start


def test_stopped_in_training(start, tmp_path):
    kept = tmp_path / "lstm.keras"
    kept.write_bytes(b"the old one")
    process = start("--number-of-epochs", "1000")
    for line in process.stdout:
        if line.startswith("Epoch 2/"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith("lstm.py: stopped after ")
    assert errors.count("\n") == 1, errors
    assert {"lstm.keras", "keras"} >= set(os.listdir(tmp_path))
    assert kept.read_bytes() == b"the old one"


def test_stopped_while_tensorflow_is_imported(start, tmp_path):
    process = start()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "lstm.py: stopped\n")


def test_nobody_reads_on(start):
    process = start(stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_no_space_for_the_output(start):
    with open("/dev/full", "w") as full:
        process = start(stdout=full)
        _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.startswith("lstm.py: ") and "No space left" in errors
    assert errors.count("\n") == 1


def test_other_settings_of_keras_do_not_matter(run, tmp_path):
    home = tmp_path / "keras"
    home.mkdir()
    (home / "keras.json").write_text(
        '{"backend": "jax", "image_data_format": "channels_first", "epsilon": 1e-6}'
    )
    arguments = [*TINY, "--preset", "tuned"]
    process = run(*arguments, KERAS_BACKEND="torch", TF_USE_LEGACY_KERAS="1")
    assert process.stderr == ""
    assert "Model kept" in process.stdout


@pytest.fixture
def served(reviews, tmp_path, monkeypatch):
    """A server that has the reviews, slowly, and an empty cache of Keras's."""

    class Slow(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def copyfile(self, source, target):
            while chunk := source.read(3000):
                target.write(chunk)
                time.sleep(0.01)

    handler = functools.partial(Slow, directory=str(reviews.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(lstm, "IMDB_URL", f"http://127.0.0.1:{server.server_port}/")
        digest = lstm.hashlib.sha256(reviews.read_bytes()).hexdigest()
        monkeypatch.setitem(lstm.IMDB_HASH, "imdb.npz", digest)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
        yield tmp_path / "home" / "datasets" / "imdb.npz"
        server.shutdown()


def test_many_downloads_at_once_leave_one_whole_file(served, reviews):
    def load(_):
        path = lstm.download("imdb.npz")
        with open(path, "rb") as file:
            return file.read()

    with ThreadPoolExecutor(10) as pool:
        contents = set(pool.map(load, range(10)))
    assert contents == {reviews.read_bytes()}
    assert list(served.parent.iterdir()) == [served]


def test_half_a_download_is_replaced(served, reviews):
    served.parent.mkdir(parents=True)
    served.write_bytes(reviews.read_bytes()[:100])  # of a run that was killed
    assert lstm.download("imdb.npz") == str(served)
    assert served.read_bytes() == reviews.read_bytes()


def test_another_file_than_expected_is_refused(served, monkeypatch):
    monkeypatch.setitem(lstm.IMDB_HASH, "imdb.npz", "0" * 64)
    with pytest.raises(lstm.UserError, match="imdb.npz: no whole copy in .*"):
        lstm.download("imdb.npz")
    assert list(served.parent.iterdir()) == []


def test_no_place_for_the_download(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(lstm.UserError, match=r"imdb.npz: .*Not a directory"):
        lstm.download("imdb.npz")


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def npz(path, member="x_train.npy", content=b"", claimed=None):
    """Write an archive with one member, perhaps lying about its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    if claimed:
        raw = bytearray(path.read_bytes())
        entry = raw.index(b"PK\x01\x02")
        raw[entry + 24 : entry + 28] = struct.pack("<I", claimed)
        path.write_bytes(raw)


def test_hostile_npz_is_refused(tmp_path, monkeypatch):
    path, evil = tmp_path / "imdb.npz", tmp_path / "evil"
    monkeypatch.setattr(lstm, "download", lambda name: str(path))
    header = io.BytesIO()
    np.lib.format.write_array(header, np.array([[1]], object))
    start = header.getvalue().index(b"\x80")
    payload = header.getvalue()[:start] + pickle.dumps([Payload(evil)])
    pickle.loads(payload[start:])  # the payload works
    evil.rmdir()
    for hostile in (
        {"content": payload},
        {"content": b"0" * 2**20, "claimed": 2**31},
        {"member": "../evil/x_train.npy", "content": payload},
    ):
        npz(path, **hostile)
        with pytest.raises(lstm.UserError, match="damaged"):
            lstm.load_imdb()
        assert not evil.exists()


def test_hostile_model_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    path = tmp_path / "hostile.keras"
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil", "")
    with pytest.raises(lstm.UserError, match="is no model"):
        lstm.load(str(path))
    assert not (tmp_path.parent.parent / "evil").exists()
    npz(path, "model.weights.h5", b"0" * 2**20)
    with pytest.raises(lstm.UserError, match="is no model .*a hundred times its size"):
        lstm.load(str(path))


def test_same_seed_same_weights_bit_by_bit(environment, tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
seed, cores = map(int, sys.argv[1:])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
import lstm
config = lstm.Config(preset="tuned", num_distinct_words=100, max_sequence_length=20,
                     batch_size=32, verbosity_mode=0, seed=seed)
weights = lstm.main(config)[0].get_weights()
print(lstm.hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest())
"""

    def weights(seed, cores):
        process = subprocess.run(
            [sys.executable, "-c", code, str(seed), str(cores)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()[-1]

    first = weights(1, 2)
    assert first == weights(1, 2) == weights(1, 1) != weights(2, 2)

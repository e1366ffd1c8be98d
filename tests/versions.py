"""Run the tests under other versions: python tests/versions.py

Makes a virtual environment for each line of VERSIONS whose Python is on this machine
(as python3.N, or in pyenv), installs it with pip, runs the tests in it, and prints a
table of what passed. It needs a network, a few GiB and half an hour.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

VERSIONS = [  # Python, TensorFlow, NumPy
    ("3.10", "2.16.*", "1.26.*"),
    ("3.13", "2.21.*", "2.*"),
    ("3.12", "2.18.*", "2.0.*"),
    ("3.11", "2.17.*", "1.26.*"),
    ("3.13", "2.20.*", "2.*"),
    ("3.12", "2.19.*", "2.1.*"),
    ("3.11", "2.21.*", "1.26.*"),
    ("3.10", "2.20.*", "2.*"),
]


def python(version):
    """The path of an interpreter of this version, or None."""
    installed = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    return next(map(str, installed), None) or shutil.which(f"python{version}")


def test(folder, interpreter, tensorflow, numpy):
    """Install and test; return the exact versions and pytest's last line."""
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    run = f"{folder}/bin/python"
    packages = [f"tensorflow=={tensorflow}", f"numpy=={numpy}"]
    packages += ["-r", str(ROOT / "tests" / "requirements.txt")]
    subprocess.run([run, "-m", "pip", "install", "-q", *packages], check=True)
    frozen = subprocess.run(
        [run, "-m", "pip", "freeze"], check=True, capture_output=True, text=True
    ).stdout
    found = dict(re.findall(r"^(tensorflow|keras|numpy)==(\S+)$", frozen, re.MULTILINE))
    tests = subprocess.run(
        [run, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(tests.stdout[-3000:] if tests.returncode else "", file=sys.stderr, flush=True)
    return found, tests.stdout.strip().splitlines()[-1]


print("| Python | TensorFlow | Keras | NumPy | tests |")
print("| --- | --- | --- | --- | --- |", flush=True)
for version, tensorflow, numpy in VERSIONS:
    interpreter = python(version)
    if interpreter is None:
        print(f"| {version} | {tensorflow} | | {numpy} | skipped: no such Python |")
        continue
    with tempfile.TemporaryDirectory() as folder:
        found, result = test(folder, interpreter, tensorflow, numpy)
    versions = (found.get(name, "?") for name in ("tensorflow", "keras", "numpy"))
    print(f"| {version} | {' | '.join(versions)} | {result} |", flush=True)

"""The file in a real Jupyter kernel: pasted whole, and opened as `# %%` cells."""

import re

import nbclient
import nbformat
from conftest import ROOT, SHORTER

SOURCE = (ROOT / "lstm.py").read_text(encoding="utf-8")
AFTER = """
print(type(model).__name__, len(history.history["loss"]), sorted(test_results))
print(predict(["word1 word2"], model).shape)
"""
READ = 'plot_reading("word1 word2", model)'
INTERRUPT = """
import os, signal

class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            signal.raise_signal(signal.SIGINT)

print("== interrupted")
results = main(Config(number_of_epochs=9, verbosity_mode=2), [Interrupt(1)])
print("went on", len(results))
"""
AGAIN = """
print("== again")
before = os.stat("lstm.keras")
main(Config(number_of_epochs=9, verbosity_mode=2), [Interrupt(0)])
"""
SAME = "print('the same file', os.stat('lstm.keras') == before, sorted(os.listdir()))"
RUN = f"%run {ROOT / 'lstm.py'} --number-of-epochs 3 --max-sequence-length 9\n"
RUN += "print('run', len(history.history['loss']))"
NEXT = "print('== opened as cells')"
MISTAKE = "main(Config(batch_size=0))"


def execute(cells, environment, monkeypatch, folder):
    """Run cells in a kernel and return the text that they print, the pictures that
    they show, and their errors. They must write nothing else to standard error."""
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        notebook, timeout=100, resources=resources, allow_errors=True
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.outputs]
    assert not [out for out in outputs if out.get("name") == "stderr"]
    text = "".join(out.get("text", "") for out in outputs)
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    return text, pictures, [out for out in outputs if out.output_type == "error"]


def test_notebook(environment, monkeypatch, tmp_path):
    pasted = SOURCE
    for old, new in SHORTER.items():
        assert old in pasted
        pasted = pasted.replace(old, new)
    opened = re.split(r"^(?=# %%)", pasted, flags=re.MULTILINE)
    assert len(opened) > 5
    cells = [pasted, AFTER, READ, RUN, NEXT, *opened, AFTER, INTERRUPT, AGAIN, SAME]
    text, pictures, errors = execute(
        [*cells, MISTAKE], environment, monkeypatch, tmp_path
    )
    first, second, interrupted, again = re.split("^== .*", text, flags=re.MULTILINE)
    for part in (first, second):
        assert "Test results - Loss: " in part
        assert 'lstm.keras - try: predict(["A wonderful film"], model)\n' in part
        assert "Functional 1 ['accuracy', 'loss']\n(1,)\n" in part
    assert "run 3\n" in first and len(pictures) == 1
    assert "val_loss" in interrupted and "Epoch 2/9" not in interrupted
    for words in ("Interrupted: ", "Test results - ", "Model kept in ", "went on 3"):
        assert words in interrupted
    assert "val_loss" not in again and "Test results" not in again
    assert again.splitlines()[-1] == "the same file True ['keras', 'lstm.keras']"
    stopped, mistake = errors
    assert stopped.ename == "KeyboardInterrupt"
    assert mistake.ename == "UserError" and mistake.evalue.startswith("batch_size: ")

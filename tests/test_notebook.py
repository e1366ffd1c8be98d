"""The file in a real Jupyter kernel: pasted whole, and opened as `# %%` cells."""

import re

import nbclient
import nbformat
import pytest
from conftest import ROOT, SHORTER

SOURCE = (ROOT / "lstm.py").read_text(encoding="utf-8")
AFTER = """
print(type(model).__name__, len(history.history["loss"]), sorted(test_results))
_, again, _ = main(Config(number_of_epochs=2, verbosity_mode=0))
print(predict(["word1 word2"], model).shape)
print("again", len(again.history["loss"]))
"""
READ = 'plot_reading("word1 word2", model)'
INTERRUPT = """
import signal, sys

def spy(text, write=sys.stdout.write):
    write(text)
    if text.startswith("Epoch 2/"):
        signal.raise_signal(signal.SIGINT)

sys.stdout.write = spy
results = main(Config(number_of_epochs=9, verbosity_mode=2))
print("kept on", len(results))
"""
RUN = f"%run {ROOT / 'lstm.py'} --number-of-epochs 3 --max-sequence-length 9\n"
RUN += "print('run', len(history.history['loss']), model.input_shape)"
MISTAKE = "main(Config(batch_size=0))"


@pytest.mark.parametrize("form", ["pasted", "cells"])
def test_notebook(form, environment, monkeypatch, tmp_path):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    source = SOURCE
    for old, new in SHORTER.items():
        assert old in source
        source = source.replace(old, new)
    parts = re.split(r"^(?=# %%)", source, flags=re.MULTILINE)
    assert len(parts) > 5
    cells = [source, AFTER, READ, RUN]
    if form == "cells":
        cells = [*parts, AFTER, READ, INTERRUPT]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    expected = {"tags": ["raises-exception"]}
    notebook.cells.append(nbformat.v4.new_code_cell(MISTAKE, metadata=expected))
    client = nbclient.NotebookClient(
        notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.outputs]
    text = "".join(out.get("text", "") for out in outputs)
    assert not [out for out in outputs if out.get("name") == "stderr"]
    assert "Test results - Loss: " in text
    assert "Functional 1 ['accuracy', 'loss']" in text
    assert "again 2" in text
    assert "run 3 (None, 9)" in text or form == "cells"
    assert "(1,)" in text
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 1
    if form == "cells":
        _, _, text = text.partition("Epoch 2/9")
        assert "Interrupted" in text and "Epoch 3/9" not in text
        assert (
            "Test results - " in text and "(replaced)" in text and "kept on 3" in text
        )
    (error,) = (out for out in outputs if out.output_type == "error")
    assert error.traceback == ["lstm.py: batch_size: 0 is below 1"]

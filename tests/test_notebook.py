"""The file in a real Jupyter kernel: pasted whole, and opened as `# %%` cells."""

import re

import nbclient
import nbformat
import pytest
from conftest import ROOT

SOURCE = (ROOT / "lstm.py").read_text(encoding="utf-8")
# As a notebook user shortens a run: by editing the defaults.
EDITS = {
    "number_of_epochs: int = 5": "number_of_epochs: int = 1",
    "num_distinct_words: int = 5000": "num_distinct_words: int = 100",
    "max_sequence_length: int = 300": "max_sequence_length: int = 20",
}
AFTER = """
print(type(model).__name__, len(history.history["loss"]), sorted(test_results))
_, again, _ = main(Config(number_of_epochs=2, verbosity_mode=0, plot="curves.png"))
print(predict(["word1 word2"], model).shape)
print("again", len(again.history["loss"]))
"""
RUN = f"%run {ROOT / 'lstm.py'} --number-of-epochs 3 --max-sequence-length 9\n"
RUN += "print('run', len(history.history['loss']), model.input_shape)"
MISTAKE = "main(Config(batch_size=0))"


@pytest.mark.parametrize("form", ["pasted", "cells"])
def test_notebook(form, environment, monkeypatch, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    source = SOURCE
    for old, new in EDITS.items():
        assert old in source
        source = source.replace(old, new)
    parts = re.split(r"^(?=# %%)", source, flags=re.MULTILINE)
    assert len(parts) > 5
    cells = [*([source] if form == "pasted" else parts), AFTER]
    cells += [RUN] if form == "pasted" else []
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
    assert "Sequential 1 ['accuracy', 'loss']" in text
    assert "again 2" in text
    assert "run 3 (None, 9)" in text or form == "cells"
    assert "(1,)" in text
    assert [out for out in outputs if "image/png" in out.get("data", {})]
    (error,) = (out for out in outputs if out.output_type == "error")
    assert error.traceback == ["lstm.py: batch_size: 0 is below 1"]

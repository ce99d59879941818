"""docs/tour.ipynb: it is what docs/tour.md makes, and runs in Jupyter with its answers."""

import doctest
import json
import re

import nbformat
import pytest

from benchmarks import notebook
from gptjax.data import downloads
from gptjax.errors import UserError
from gptjax.runs.progress import NotebookBar


def test_the_notebook_is_what_the_page_makes():
    notebook.main(["--check"])
    found = nbformat.reads(notebook.NOTEBOOK.read_text("utf-8"), 4)
    nbformat.validate(found)
    assert not any(cell.get("outputs") for cell in found.cells)


def test_a_page_that_has_changed_is_noticed(tmp_path, monkeypatch):
    page = tmp_path / "tour.md"
    page.write_text(notebook.PAGE.read_text("utf-8") + "More.\n", "utf-8")
    monkeypatch.setattr(notebook, "PAGE", page)
    with pytest.raises(SystemExit, match=r"run python -m benchmarks\.notebook"):
        notebook.main(["--check"])


def test_a_cell_ends_after_every_answer():
    page = "# A\n\n<!-- page -->\nB\n<!-- /page -->\n```python\n>>> x = 1\n>>> x\n1\n>>> x + 1\n2\n"
    page += "\n```\n\nC\n<!-- notebook\nprint(x)\n-->\n"
    cells = json.loads(notebook.make(page))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert sources == ["# A", "x = 1\nx", "x + 1", "C", "print(x)"]


def test_the_bar_of_a_notebook(monkeypatch):
    pages = []

    class Shown:
        def update(self, page):
            pages.append(page.data)

    def display(page, display_id):
        pages.append(page.data)
        return Shown()

    monkeypatch.setattr("IPython.display.display", display)
    bar = NotebookBar(total=10, step=2)
    bar.show(3, "a < b")
    bar.show(4, "too soon")
    bar.show(10, "the end", at_once=True)
    assert [re.sub(" max.*<code>|</code>", " ", page) for page in pages] == [
        '<progress value="2" compiling ',
        '<progress value="3" a &lt; b ',
        '<progress value="10" the end ',
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_with_the_answers_of_the_page(tmp_path, monkeypatch):
    import nbclient

    try:
        downloads.fetch("tinyshakespeare")
    except UserError as error:
        pytest.skip(str(error))
    found = nbformat.reads(notebook.NOTEBOOK.read_text("utf-8"), 4)
    for cell in found.cells:
        small = 'run_dir="runs/tour", max_steps=8, eval_batches=1, sample_tokens=0'
        cell.source = cell.source.replace('run_dir="runs/tour"', small)
    monkeypatch.setenv("PYTHONPATH", str(notebook.DOCS.parent))
    # The models learn something: that computes more than it compiles, unlike other tests.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=1")
    client = nbclient.NotebookClient(
        found, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    examples = doctest.DocTestParser().get_examples(notebook.PAGE.read_text("utf-8"))
    assert len(examples) > 60
    answered = [example for example in examples if example.want]
    checker = doctest.OutputChecker()
    for cell in found.cells:
        if answered and cell.source.endswith(answered[0].source.rstrip()):
            want, got = answered.pop(0).want, answer(cell)
            assert checker.check_output(want, got, doctest.NORMALIZE_WHITESPACE), cell.source + got
    assert not answered
    outputs = [output for cell in found.cells for output in cell.get("outputs", ())]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 2
    bars = [data["text/html"] for data in shown if "<progress" in data.get("text/html", "")]
    assert len(bars) == 1
    assert 'value="8" max="8"' in bars[0]
    assert (tmp_path / "runs/tour/loss.png").exists()


def answer(cell) -> str:
    """What a cell printed, and the value of its last line."""
    printed = [output.text for output in cell.outputs if output.get("name") == "stdout"]
    values = [o.data["text/plain"] for o in cell.outputs if o.output_type == "execute_result"]
    return "".join([*printed, *values, "\n"])

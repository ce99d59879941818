"""README.md and docs say what was measured, and name what is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tables
from gptjax.data import downloads
from gptjax.errors import UserError

ROOT = Path(__file__).parent.parent


def test_figures_come_from_the_committed_json(monkeypatch):
    monkeypatch.chdir(ROOT)
    tables.main(["--check"])


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text())
    links = [link for link in links if not link.startswith("http")]
    assert len(links) > (20 if page == "README.md" else 0)
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


def test_the_tour_runs_as_it_stands():
    try:
        downloads.fetch("tinyshakespeare")
    except UserError as error:
        pytest.skip(str(error))
    # As a reader would, not compiled in haste as the other tests are.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "doctest", "docs/tour.md"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (ROOT / "docs/tour.md").read_text().count(">>> ") > 40


def test_every_module_and_config_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for path in ROOT.glob("gptjax/*.py"):
        assert path.name == "__init__.py" or f"gptjax/{path.name}" in readme
    for path in ROOT.glob("configs/*.py"):
        assert f"`{path.stem}`" in readme

"""README.md and docs say what was measured, and name what is there."""

import re
from pathlib import Path

from benchmarks import tables

ROOT = Path(__file__).parent.parent


def test_figures_come_from_the_committed_json(monkeypatch):
    monkeypatch.chdir(ROOT)
    tables.main(["--check"])


def test_links_in_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 20
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_every_module_and_config_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for path in ROOT.glob("gptjax/*.py"):
        assert path.name == "__init__.py" or f"gptjax/{path.name}" in readme
    for path in ROOT.glob("configs/*.py"):
        assert f"`{path.stem}`" in readme

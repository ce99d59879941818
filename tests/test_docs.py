"""README.md, docs/ and configs/: the figures were measured, the files and options exist."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import tyro

from benchmarks import tables
from gptjax import cli, command_line
from gptjax.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md"))),
]
CONFIGS = [f"configs/{path.name}" for path in sorted(ROOT.glob("configs/*.py"))]


def test_figures_come_from_the_committed_json(monkeypatch):
    monkeypatch.chdir(ROOT)
    tables.main(["--check"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", (ROOT / page).read_text())
    links = [(path, anchor) for path, anchor in links if not path.startswith("http")]
    assert len(links) > (20 if page == "README.md" else 0)
    for path, anchor in links:
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {path}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page} links to {path}#{anchor}"


def anchors(markdown: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: str) -> list[str]:
    """The commands of gptjax in a page, or in the docstring of a config."""
    text = (ROOT / page).read_text()
    if page.endswith(".py"):
        docstring = ast.get_docstring(ast.parse(text)) or ""
        lines = re.findall(r"^ {4}(.*)", docstring, flags=re.MULTILINE)
    else:
        block = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
        shell = [content for language, content in block.findall(text) if not language]
        lines = "\n".join(shell).replace("\\\n", " ").splitlines()
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", block.sub("", text))]
    # `run="gptjax train ..."` makes $run short for a command.
    variables = dict(found.groups() for line in lines if (found := re.match(r'(\w+)="(.*)"', line)))
    for name, value in variables.items():
        lines = [line.replace(f"${name} ", f"{value} ") for line in lines]
    # At the start of a line, after `... &&`, or after `docker run ... IMAGE`, which is gptjax, too.
    start = r"(?:^|&& |^docker run .* )((?:gptjax [a-z]+|python (?:train|sample)\.py) \S.*)"
    return [found[1] for line in lines if (found := re.search(start, line))]


class Parsed(BaseException):
    """A command line was parsed. The command itself must not run."""


@pytest.mark.parametrize("page", PAGES + CONFIGS)
def test_every_command_line_has_options_that_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    real = tyro.cli

    def parse_only(*args, **kwargs):
        real(*args, **kwargs)
        raise Parsed

    lines = commands(page)
    if page in ("README.md", *CONFIGS):
        assert lines, f"{page} shows no command"
    for line in lines:
        argv = shlex.split(line.partition(" > ")[0].removesuffix("&"), comments=True)
        argv = argv[1:] if argv[0] == "gptjax" else [Path(argv[1]).stem, *argv[2:]]
        try:
            if argv[0] == "train":  # whole, with the checks of values
                command_line.parse(argv[1:])
            elif argv[0] == "doctor":  # it does not use tyro
                assert argv[1:] in ([], ["--json"])
            else:
                with monkeypatch.context() as patch:
                    patch.setattr(tyro, "cli", parse_only)
                    cli.main(argv)
        except Parsed:
            pass
        except (UserError, SystemExit) as error:
            if not (isinstance(error, SystemExit) and error.code == 0):
                pytest.fail(f"{page}: {line}: {error}")


def test_the_reading_path_is_as_short_as_the_readme_says():
    section = (
        (ROOT / "README.md").read_text().split("## Read the code")[1].split("If JAX and Flax")[0]
    )
    path = re.findall(r"^\| \[.*?\]\((.*?)\)", section, flags=re.MULTILINE)
    assert len(path) == 7
    assert "fewer than 1,000 lines" in section
    assert sum(len((ROOT / file).read_text().splitlines()) for file in path) < 1000


def test_every_module_room_and_config_is_named():
    readme, contributing = ((ROOT / f"{n}.md").read_text() for n in ("README", "CONTRIBUTING"))
    for path in ROOT.glob("gptjax/*.py"):
        assert path.name == "__init__.py" or f"gptjax/{path.name}" in readme + contributing
    for path in ROOT.glob("gptjax/*/__init__.py"):
        assert f"[{path.parent.name}/](gptjax/{path.parent.name}/)" in contributing
    for path in ROOT.glob("configs/*.py"):
        assert f"`{path.stem}`" in readme

"""The command `gptjax`: help, dispatch, and the entry points that call it."""

import contextlib
import importlib
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import Printed, Refused

from gptjax import __version__, cli

REPO = Path(__file__).parents[1]


def test_help_fits_one_screen(printed: Printed) -> None:
    for argv in ([], ["--help"], ["-h"], ["help"]):
        text = printed(cli.main, *argv)
        assert text == cli.HELP + "\n"
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name, (_, sentence) in cli.COMMANDS.items():
        assert f"  {name:<10}{sentence}" in lines


def test_help_imports_no_other_package() -> None:
    """So that it answers at once: importing jax alone takes a second."""
    code = "import sys; first = {*sys.modules}; from gptjax import cli; cli.main(['--help']); "
    code += "new = {name.partition('.')[0] for name in {*sys.modules} - first}; "
    code += "print(new - sys.stdlib_module_names)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "{'gptjax'}"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with contextlib.suppress(SystemExit):  # tyro exits after its help
        cli.main([name, "--help"])
    lines = [f"{line.strip()} " for line in capsys.readouterr().out.splitlines()]
    assert 1 <= sum(line.startswith(f"gptjax {name} ") for line in lines) <= 3


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_rest_of_the_command_line_goes_to_the_module(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls: list[Any] = []
    module = importlib.import_module(cli.COMMANDS[name][0])
    monkeypatch.setattr(module, "main", calls.append)
    cli.main([name, "runs/x", "--help"])
    assert calls == [["runs/x", "--help"]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trian", "gptjax has no command trian; did you mean train?"),
        ("quantise", "did you mean quantize?"),
        ("--hlep", "gptjax has no command --hlep; "),
        ("xyz", "there are train, sample, evaluate, quantize, export, import, prepare, plot, "),
    ],
)
def test_an_unknown_command_names_the_nearest(refused: Refused, name: str, words: str) -> None:
    assert words in refused(cli.main, name)


def test_version(printed: Printed) -> None:
    assert printed(cli.main, "--version") == f"{__version__}\n"


def test_the_console_script_is_this_main() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["gptjax"].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main


@pytest.mark.parametrize(
    ("script", "module"), [("train.py", "gptjax.train"), ("sample.py", "gptjax.commands.sample")]
)
def test_root_scripts_call_the_same_main(
    monkeypatch: pytest.MonkeyPatch, script: str, module: str
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(importlib.import_module(module), "main", lambda *argv: calls.append(argv))
    runpy.run_path(str(REPO / script), run_name="__main__")
    assert len(calls) == 1


def test_python_dash_m() -> None:
    command = [sys.executable, "-m", "gptjax", "trian"]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: gptjax has no command trian; did you mean train?\n"


def test_gptjax_is_the_only_program_of_the_package() -> None:
    """No module but __main__ can be run as a script."""
    scripts = [path for path in REPO.glob("gptjax/**/*.py") if '"__main__"' in path.read_text()]
    assert scripts == [REPO / "gptjax" / "__main__.py"]

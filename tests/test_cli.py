"""The command `gptjax`: help, dispatch, and the entry points that call it."""

import contextlib
import importlib
import os
import random
import runpy
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Printed, Refused

from gptjax import __version__, cli, command_line, signals

REPO = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """cli.main is for programs: it changes them for good."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signal.set_wakeup_fd(-1)


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


@pytest.mark.parametrize("name", [*cli.COMMANDS, "import gpt2", "import whisper"])
def test_every_command_has_help_with_examples_that_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):  # tyro exits after its help
        cli.main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "\n\n\n" not in text
    lines = [f"{line.strip()} " for line in text.splitlines()]
    examples = [i for i, line in enumerate(lines) if line.startswith(f"gptjax {name} ")]
    assert 1 <= len(examples) <= 3
    assert lines[examples[0] - 1] == "examples: "


@pytest.mark.parametrize("width", [50, 120])
def test_a_help_text_is_that_of_tyro_wrapped_and_with_its_colours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    printed = []
    for wrap in (command_line._wrapped, str):
        monkeypatch.setattr(command_line, "_wrapped", wrap)
        with pytest.raises(SystemExit):
            cli.main(["evaluate", "--help"])
        printed.append(capsys.readouterr().out)
    ours, theirs = printed
    assert ours.split() == theirs.split()
    assert "\x1b[1musage:" in ours
    start = ours[ours.index("A run on text") :].splitlines()[0]
    assert width - 15 < len(start) <= width < len(theirs[theirs.index("A run on text") :])


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


PROGRAMS = {
    "gptjax": ["-c", "from gptjax.cli import main; main()", "evaluate", "none"],
    "python -m gptjax": ["-m", "gptjax", "export", "none", "--help"],
    "train.py": [REPO / "train.py", "--help"],
    "sample.py": [REPO / "sample.py", "none"],
}


def start(program: str) -> subprocess.Popen[str]:
    """The program, at the moment when its first lines have run."""
    command = [sys.executable, *map(str, PROGRAMS[program])]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            break
        time.sleep(0.001)
    return process


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_importing_ends_a_program_at_once(
    program: str, signum: int, code: int
) -> None:
    """At random moments of one second, in which jax, flax, orbax and tyro are imported."""
    rng = random.Random(signum)
    for delay in (0, rng.uniform(0, 0.2), rng.uniform(0.2, 0.7)):
        process = start(program)
        time.sleep(delay)
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (code, "", ""), delay


def test_a_signal_ends_a_program_whose_main_thread_is_in_a_library() -> None:
    """Python runs a handler only between two of its own steps."""
    # usleep would end early at a signal, so this thread blocks it.
    code = """
import ctypes, signal
from gptjax.signals import end_at_once
end_at_once()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print(1, flush=True)
ctypes.CDLL(None).usleep(20_000_000)
"""
    command, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert time.monotonic() - began < 2


def test_commands_clean_up_after_ctrl_c_and_training_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers: list[Any] = []
    for name in ("train", "export"):
        module = importlib.import_module(cli.COMMANDS[name][0])
        monkeypatch.setattr(
            module, "main", lambda argv: handlers.append(signal.getsignal(signal.SIGINT))
        )
        cli.main([name])
    assert handlers == [signals._end, signal.default_int_handler]
    assert signal.getsignal(signal.SIGINT) is signals._end


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_a_python_without_the_packages_says_so_in_one_line(script, monkeypatch, capsys):
    """As outside of the virtual environment."""
    for name in [n for n in sys.modules if n.startswith("gptjax.") and n != "gptjax.errors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.setattr(sys, "argv", [script, "runs/x"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPO / script), run_name="__main__")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "lacks the package tyro" in line
    assert "source .venv/bin/activate" in line


def test_the_command_that_is_printed_works_from_here(monkeypatch, tmp_path):
    script = Path(sys.executable).parent / "gptjax"
    monkeypatch.setenv("PATH", str(script.parent))
    assert command_line.program() == "gptjax"
    monkeypatch.setenv("PATH", str(tmp_path))  # the virtual environment is not activated
    monkeypatch.chdir(script.parent.parent.parent)
    assert command_line.program() == f"{script.parent.parent.name}/bin/gptjax"
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([command_line.program(), "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == __version__
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # a wheel without its script
    assert command_line.program() == f"{tmp_path}/python -m gptjax"

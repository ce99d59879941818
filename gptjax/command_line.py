"""From a command line to a configuration: load the file, apply overrides, check every value.

`--config configs/gpt.py` runs a Python file that defines `config = Config(...)`. tyro then makes an
option of every field. Every mistake of the user is a UserError with one line, or tyro's box of
similar options.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from gptjax import config_checks
from gptjax.config import Config
from gptjax.config_json import flatten
from gptjax.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """Facts of one start: folder, trackers, processes. They are not part of the configuration."""

    run_dir: Path | None = None
    """The run directory; default runs/NAME of the config file. A run in it is continued."""
    resume: bool = False
    """Refuse to start a new run: there must be a checkpoint to continue from."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra: tensorboard)."""
    wandb: bool = False
    """Also log to Weights & Biases (extra: wandb)."""
    compilation_cache: bool = True
    """Keep compiled programs on disk, for the next start. On a GPU or TPU only."""
    coordinator: str = ""
    """HOST:PORT of process 0, if there are several. Slurm, Open MPI and Kubernetes provide it."""
    processes: int = 0
    """Number of processes. 0: one, or as many as the cluster started."""
    process: int = -1
    """Index of this process, from 0. -1: the cluster provides it."""

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the optional trackers to log to."""
        return ("tensorboard",) * self.tensorboard + ("wandb",) * self.wandb

    @property
    def folder(self) -> Path:
        """The run directory. Raises UserError if there is none."""
        if self.run_dir is None:
            raise UserError("--run-dir is missing; name a folder for the run")
        return self.run_dir


@dataclass(frozen=True)
class _CommandLine:
    """Train a model, or continue a run that was stopped.

    examples:
        gptjax train --config configs/gpt_cpu.py
        gptjax train --config configs/gpt_cpu.py --run-dir runs/small --model.n-layer 3
        gptjax train --config configs/gpt_cpu.py --help    (options with the values of this file)
    """

    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    launch: Annotated[Launch, tyro.conf.arg(name="")] = field(default_factory=Launch)


def parse(argv: list[str]) -> tuple[Config, Launch]:
    """The configuration and the launch that a command line of `gptjax train` asks for.

    Raises UserError for a missing or broken config file and for a value of the wrong type or range.
    An unknown option exits as in parse_command. -h and --help print the options and exit.
    """
    path, overrides = _split_config_flag(argv)
    if path is None and not {"-h", "--help"} & set(overrides):
        near = ", ".join(sorted(map(str, Path("configs").glob("*.py"))))
        raise UserError(f"--config FILE is missing; there are {near or 'none in configs/'}")
    default = _CommandLine()
    if path:
        default = _CommandLine(load_file(path), Launch(Path("runs") / path.stem))
    found = parse_command(_CommandLine, overrides, "gptjax train --config FILE", default)
    config, launch = found.config, found.launch
    config_checks.check(config)
    check_launch(launch)
    if config.data.path:  # later commands may use the run from another folder
        data = dataclasses.replace(config.data, path=config.data.path.absolute())
        config = dataclasses.replace(config, data=data)
    return config, launch


def parse_command(cls: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Fills a dataclass from a command line with tyro.

    Raises UserError for a bad command line. If tyro knows similar options, prints its box with
    their descriptions instead, and exits with code 2.
    """
    errors = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    markers = (tyro.conf.AvoidSubcommands,)
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(cls, args=argv, prog=prog, config=markers, **given)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        box = errors.getvalue()
        if "Perhaps you meant" in box or "Arguments similar to" in box:
            print(box, end="", file=sys.stderr)
            raise
        raise UserError(_one_line(box)) from None


def program() -> str:
    """How a user calls `gptjax` from the current folder: by its name, or by a path."""
    script = Path(sys.executable).parent / "gptjax"
    if shutil.which("gptjax") == str(script):
        return "gptjax"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m gptjax"
    path = os.path.relpath(script)
    return shlex.quote(str(script) if path.startswith("..") else path)


def load_file(path: Path) -> Config:
    """Runs a config file and returns its `config`; raises UserError if there is none."""
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        near = ", ".join(sorted(str(p) for p in folder.glob("*.py"))) or "none"
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"--config {path} {what}; config files there: {near}")
    spec = importlib.util.spec_from_file_location(f"gptjax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config {path} is not a Python file; see configs/gpt.py for one")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise UserError(
            f"--config {path} fails with {type(error).__name__}: {error}{_hint(str(error))}"
        ) from None
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise UserError(f"--config {path} must define `config = Config(...)`; see configs/gpt.py")
    try:
        config_checks.check_kinds(config)
        config_checks.check_types(config)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None
    return config


def _hint(error: str) -> str:
    """The name that a misspelled keyword argument of a config file may mean, or ""."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", error)
    if not unknown:
        return ""
    if unknown[1] in (field.name for field in dataclasses.fields(Launch)):
        return f"; it is an option of the command line, --{unknown[1].replace('_', '-')}"
    names = [name.rpartition(".")[2] for name in flatten(Config())]
    near = difflib.get_close_matches(unknown[1], names, 1)
    return f"; did you mean {near[0]}?" if near else ""


def check_launch(launch: Launch) -> None:
    """Raises UserError for a launch of several processes that is incomplete or inconsistent."""
    explicit = [bool(launch.coordinator), launch.processes > 0, launch.process >= 0]
    if any(explicit) and not all(explicit):
        raise UserError(
            "--coordinator, --processes and --process go together: HOST:PORT, the number of "
            "processes, and the index of this one"
        )
    if all(explicit):
        is_address = re.fullmatch(r".+:\d{1,5}", launch.coordinator)
        config_checks.require(bool(is_address), "coordinator", launch.coordinator, "HOST:PORT")
        in_range = launch.process < launch.processes
        config_checks.require(in_range, "process", launch.process, f"in [0, {launch.processes})")


def _split_config_flag(argv: list[str]) -> tuple[Path | None, list[str]]:
    """Takes `--config FILE` or `--config=FILE` out of a command line."""
    rest, path = [], None
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
            continue
        value = value if equals else next(arguments, "")
        if not value:
            raise UserError("--config needs a file, for example --config configs/gpt_cpu.py")
        path = Path(value)
    return path, rest


def _one_line(boxed: str) -> str:
    """The first sentences of tyro's box, up to its help texts."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    # Without the title. If stdout is not UTF-8, the box has no sides and its lines are hyphens.
    lines = [line.strip(" │╰─╯") for line in plain.splitlines()[1:]]
    inside = " ".join(line for line in lines if line.strip("-"))
    text = re.split(r"For full helptext|Argument helptext|\(default:", inside)[0]
    return f"{' '.join(text.split())} (--help lists every option)"

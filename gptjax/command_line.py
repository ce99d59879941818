"""From a command line to a configuration: load the file, apply overrides, check every value.

`--config configs/gpt.py` runs a Python file that defines `config = Config(...)`. tyro then makes an
option of every field. Every mistake of the user is a UserError with one line, or tyro's box of
similar options.
"""

import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import tyro

from gptjax import config_checks, config_files, json_files
from gptjax.config import Config
from gptjax.errors import UserError
from gptjax.json_files import can_name_a_file
from gptjax.launch import Launch, check_launch

T = TypeVar("T")

COLOR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class _CommandLine:
    """Train a model, or continue a run that was stopped.

    examples:
        gptjax train --config configs/gpt_cpu.py
        gptjax train --config configs/gpt_cpu.py --run-dir runs/a --model.n-layer 3
        gptjax train --config configs/gpt_cpu.py --help    (with this file's values)
    """

    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    launch: Annotated[Launch, tyro.conf.arg(name="")] = field(default_factory=Launch)


def parse(argv: list[str]) -> tuple[Config, Launch]:
    """The configuration and the launch that a command line of `gptjax train` asks for.

    Raises UserError for a missing or broken config file and for a value of the wrong type or range.
    An unknown option exits as in parse_command. -h and --help print the options and exit.
    """
    _check_arguments(argv)
    path, overrides = _split_config_flag(argv)
    if path is None and not {"-h", "--help"} & set(overrides):
        names = ", ".join(config_files.descriptions())
        raise UserError(f"--config is missing; name a file, or one of {names}")
    default = _CommandLine()
    if path:
        path = config_files.find(path)
        default = _CommandLine(config_files.load_file(path), Launch(Path("runs") / path.stem))
    found = parse_command(_CommandLine, overrides, "gptjax train --config FILE", default)
    config, launch = found.config, found.launch
    config_checks.check(config)
    config_checks.check_memory(config)
    check_launch(launch)
    if config.data.path:  # later commands may use the run from another folder
        data = dataclasses.replace(config.data, path=config.data.path.absolute())
        config = dataclasses.replace(config, data=data)
    return config, launch


def parse_command(cls: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Fills a dataclass from a command line with tyro. A ~ at the start of a path is the home.

    Raises UserError for a bad command line. If tyro knows similar options, prints its box with
    their descriptions instead, and exits with code 2.
    """
    _check_arguments(argv)
    errors, printed = io.StringIO(), _Printed(sys.stdout)
    given: dict[str, Any] = {} if default is None else {"default": default}
    markers = (tyro.conf.AvoidSubcommands,)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            return _with_home(tyro.cli(cls, args=argv, prog=prog, config=markers, **given))
    except SystemExit as stop:
        if stop.code in (0, None):
            print(_wrapped(printed.getvalue()), end="")
            raise
        box = errors.getvalue()
        if "Perhaps you meant" in box or "Arguments similar to" in box:
            print(box, end="", file=sys.stderr)
            raise
        raise UserError(_one_line(box)) from None


def refuse_options(command: Any, options: Sequence[str], why: str) -> None:
    """Raises UserError if an option is set that this kind of run does not use."""
    for name in options:
        if getattr(command, name) != getattr(type(command), name):
            raise UserError(f"--{name.replace('_', '-')} is not for {command.run}, which {why}")


def program() -> str:
    """How a user calls `gptjax` from the current folder: by its name, or by a path."""
    script = Path(sys.executable).parent / "gptjax"
    if shutil.which("gptjax") == str(script):
        return "gptjax"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m gptjax"
    path = os.path.relpath(script)
    return shlex.quote(str(script) if path.startswith("..") else path)


def _split_config_flag(argv: list[str]) -> tuple[Path | None, list[str]]:
    """Takes `--config FILE` out of a command line. Without FILE: lists the names, and exits."""
    rest, path = [], None
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
            continue
        value = value if equals else next(arguments, "")
        if not value:
            for known, sentence in config_files.descriptions().items():
                print(f"{known:<15} {sentence}")
            sys.exit(0)
        if path is not None:
            raise UserError(f"--config is there twice, as {path} and {value}; give one")
        path = _with_home(Path(value))
    return path, rest


def _check_arguments(argv: list[str]) -> None:
    """Raises UserError for an argument that no shell can pass, but a program can."""
    for argument in argv:
        if not can_name_a_file(argument):
            raise UserError(
                f"the argument {json_files.shown(argument)} has a NUL byte or half a surrogate pair"
            )


def _with_home(value: Any) -> Any:
    """The value with every path that starts with ~ in the home folder, as in a shell."""
    if isinstance(value, Path):
        try:
            return value.expanduser()
        except RuntimeError:  # there is no such user
            raise UserError(f"{value}: there is no home folder {value.parts[0]}") from None
    if isinstance(value, tuple):
        return tuple(map(_with_home, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        expanded = {name: _with_home(old) for name, old in fields.items()}
        changed = {name: new for name, new in expanded.items() if new is not fields[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value


class _Printed(io.StringIO):
    """What tyro prints. It asks whether the stream in whose place this is has colours and boxes."""

    def __init__(self, stream: TextIO):
        super().__init__()
        self._stream = stream

    encoding = property(lambda self: self._stream.encoding)  # pyright: ignore

    def isatty(self) -> bool:
        return self._stream.isatty()


def _wrapped(text: str) -> str:
    """A help text whose sentences fit the terminal. tyro wraps only what is in boxes."""
    width = shutil.get_terminal_size().columns
    lines = text.split("\n")
    for i, line in enumerate(lines):
        plain = COLOR.sub("", line)
        # Commands and code are indented, and stay as they are.
        if len(plain) > width and plain[0].isalpha() and "usage:" in lines[0]:
            indent = " " * 7 if plain.startswith("usage:") else ""
            lines[i] = textwrap.fill(plain, width, break_on_hyphens=False, subsequent_indent=indent)
    return "\n".join(lines)


def _one_line(boxed: str) -> str:
    """The first sentences of tyro's box, up to its help texts."""
    plain = COLOR.sub("", boxed)
    # Without the title. If stdout is not UTF-8, the box has no sides and its lines are hyphens.
    lines = [line.strip(" │╰─╯") for line in plain.splitlines()[1:]]
    inside = " ".join(line for line in lines if line.strip("-"))
    text = re.split(r"For full helptext|Argument helptext|\(default:", inside)[0]
    return f"{' '.join(text.split())} (--help lists every option)"

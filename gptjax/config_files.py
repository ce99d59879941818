"""Configuration files: Python files that define `config = Config(...)`. They are code, and run."""

import ast
import dataclasses
import difflib
import importlib.util
import re
from pathlib import Path

from gptjax import config_checks
from gptjax.config import Config
from gptjax.config_json import flatten
from gptjax.errors import UserError
from gptjax.launch import Launch
from gptjax.reading import kind

_PACKAGE = Path(__file__).parent
# Inside of the package in a wheel; in a clone a link there leads to the folder beside it.
SHIPPED = next(
    folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()
)


def find(path: Path) -> Path:
    """The file of a path, or of the name of a shipped configuration, such as gpt_cpu."""
    if path.suffix or path.exists() or len(path.parts) > 1:
        return path
    here = Path("configs") / f"{path}.py"  # in a clone, what the user may have changed
    shipped = SHIPPED / f"{path}.py"
    if not here.is_file() and not shipped.is_file():
        near = difflib.get_close_matches(str(path), descriptions(), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(descriptions())}"
        raise UserError(f"--config {path} is neither a file nor a shipped configuration; {hint}")
    return here if here.is_file() else shipped


def descriptions() -> dict[str, str]:
    """{name: first sentence} of the shipped configurations."""
    found = {}
    for path in sorted(SHIPPED.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = text.split("\n\n")[0].replace("\n", " ")
    return found


def load_file(path: Path) -> Config:
    """Runs a config file and returns its `config`; raises UserError if there is none.

    path: as in `find`.
    """
    path = find(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        near = ", ".join(sorted(str(p) for p in folder.glob("*.py"))) or "none"
        what = f"is {kind(path.stat().st_mode)}" if path.exists() else "does not exist"
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

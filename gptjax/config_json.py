"""A configuration as JSON text and back, and as one flat dictionary for comparisons."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal, TypedDict

from gptjax import config_checks, json_files
from gptjax.config import Config, MeshConfig, OptimConfig, TrainConfig
from gptjax.config_encoders import DATA_OF_MODEL
from gptjax.errors import UserError

FIX = (
    "this version of gptjax did not write that; restore the file from a copy of the run, or update "
    "gptjax"
)

_CLASSES = (Config, OptimConfig, MeshConfig, TrainConfig, *DATA_OF_MODEL, *DATA_OF_MODEL.values())
_BY_NAME = {cls.__name__: cls for cls in _CLASSES}

# Fields of runs that were started before 2026-11-26. They were facts of one start, or are now
# chosen automatically; the parameters do not depend on them.
_REMOVED = {
    "Config": ("run_dir", "resume"),
    "MeshConfig": ("coordinator", "processes", "process"),
    "OptimConfig": ("beta1",),
    "TrainConfig": ("steps_per_dispatch", "keep_checkpoints", "tensorboard", "wandb"),
}


def to_json(config: Config) -> str:
    """The configuration as JSON text; `from_json` inverts it."""

    def encode(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"type": type(value).__name__, **fields}
        return str(value) if isinstance(value, Path) else value

    return json.dumps(encode(config), indent=2) + "\n"


class _Saved(TypedDict):
    """The form of config.json. `_decode` checks the fields of its sections."""

    type: Literal["Config"]
    model: dict[str, Any]
    data: dict[str, Any]
    optim: dict[str, Any]
    mesh: dict[str, Any]
    train: dict[str, Any]
    seed: int


def read(path: Path) -> Config:
    """The configuration in a config.json, with every value checked as on a command line.

    Raises UserError for a file that cannot be read, or that `to_json` did not write.
    """
    config = _from_saved(json_files.read(path, _Saved, FIX), str(path))
    try:
        config_checks.check_types(config)  # a section may be of another kind
        config_checks.check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def from_json(text: str, where: str = "config.json") -> Config:
    """Reads what `to_json` wrote, now or before 2026-11-26. Raises UserError for anything else."""
    return _from_saved(json_files.parse(text, _Saved, where, FIX), where)


def _from_saved(saved: _Saved, where: str) -> Config:
    def decode(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            return value
        cls = _BY_NAME[json_files.check(value.get("type"), _Names, where, FIX, f"{place}type")]
        hints = typing.get_type_hints(cls)
        fields = {}
        for name, part in value.items():
            if name == "type":
                continue
            if name not in hints:
                raise UserError(f"{where}: {place}{name} is no field of {cls.__name__}; {FIX}")
            form = dict if dataclasses.is_dataclass(hints[name]) else hints[name]
            part = json_files.check(part, form, where, FIX, place + name)
            if hints[name] == Path | None and isinstance(part, str):
                part = Path(part)
            fields[name] = decode(part, f"{place}{name}.")
        return cls(**fields)

    return decode(_upgrade(dict(saved), where), "")


_Names: Any = Literal[tuple(_BY_NAME)]


def _upgrade(saved: dict[str, Any], where: str) -> dict[str, Any]:
    """A configuration written before 2026-11-26 in today's form; others are left alone."""
    if saved["data"].get("type") != "DataConfig":
        return saved
    saved = {
        name: {k: v for k, v in part.items() if k not in _REMOVED.get(str(part.get("type")), ())}
        if isinstance(part, dict)
        else part
        for name, part in saved.items()
        if name not in _REMOVED["Config"]
    }
    models: Any = Literal[tuple(cls.__name__ for cls in DATA_OF_MODEL)]
    model = json_files.check(saved["model"].get("type"), models, where, FIX, "model.type")
    cls = DATA_OF_MODEL[_BY_NAME[model]]
    fields = {f.name for f in dataclasses.fields(cls)}
    kept = {name: value for name, value in saved["data"].items() if name in fields}
    return saved | {"data": {**kept, "type": cls.__name__}}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"model.n_layer": 6, ...}: one entry per field, for comparing two configurations."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat[f"{prefix}{f.name}"] = type(value).__name__
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[f"{prefix}{f.name}"] = value
    return flat

"""A configuration as JSON text and back, and as one flat dictionary for comparisons."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from gptjax.config import (
    BigramConfig,
    Config,
    GPTConfig,
    MeshConfig,
    OptimConfig,
    TextDataConfig,
    TrainConfig,
)
from gptjax.config_encoders import (
    EncoderDecoderConfig,
    PairsDataConfig,
    SpeechConfig,
    SpeechDataConfig,
)
from gptjax.errors import UserError

DATA_OF_MODEL = {
    BigramConfig: TextDataConfig,
    GPTConfig: TextDataConfig,
    EncoderDecoderConfig: PairsDataConfig,
    SpeechConfig: SpeechDataConfig,
}
"""The kind of data that each kind of model is trained on."""

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


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote, now or before 2026-11-26. Raises UserError for anything else."""

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        cls = _BY_NAME[value["type"]]
        hints = typing.get_type_hints(cls)
        fields = {name: decode(v) for name, v in value.items() if name != "type"}
        for name, v in fields.items():
            if hints[name] == Path | None and v is not None:
                fields[name] = Path(v)
        return cls(**fields)

    try:
        config = decode(_upgrade(json.loads(text)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"config.json was not written by this version ({error})") from None
    if not isinstance(config, Config):
        raise UserError("config.json was not written by this version (no Config in it)")
    return config


def _upgrade(saved: dict[str, Any]) -> dict[str, Any]:
    """A configuration written before 2026-11-26 in today's form; others are left alone."""
    if saved.get("data", {}).get("type") != "DataConfig":
        return saved
    saved = {
        name: {k: v for k, v in part.items() if k not in _REMOVED.get(part["type"], ())}
        if isinstance(part, dict)
        else part
        for name, part in saved.items()
        if name not in _REMOVED["Config"]
    }
    cls = DATA_OF_MODEL[_BY_NAME[saved["model"]["type"]]]
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

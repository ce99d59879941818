"""Checks of a configuration: every value that cannot work is a UserError with one line."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from gptjax.config import Config, GPTConfig, MeshConfig, TextDataConfig
from gptjax.config_encoders import (
    DATA_OF_MODEL,
    EncoderDecoderConfig,
    PairsDataConfig,
    SpeechConfig,
    SpeechDataConfig,
)
from gptjax.errors import UserError
from gptjax.json_files import can_name_a_file
from gptjax.reading import host_memory, in_words


def require(ok: bool, flag: str, value: Any, rule: str) -> None:
    """Raises UserError that names an option, its value and the rule it must obey, unless ok."""
    if not ok:
        raise UserError(f"--{flag} is {value}, but must be {rule}")


def require_memory(flag: str, value: Any, n_bytes: float, there: int | None = None) -> None:
    """Raises UserError if an option's value needs more memory than there is.

    n_bytes: what it needs at least. there: what there is, by default the host's memory.
    """
    there = host_memory() if there is None else there
    if n_bytes > there:
        raise UserError(
            f"--{flag} {value} needs {in_words(n_bytes)} of memory or more, and there is "
            f"{in_words(there)}; make it smaller"
        )


# Larger values would never end, or fill the memory before anything is computed.
MOST = {
    "n_layer": 200,  # tracing a layer takes 30 ms
    "n_encoder_layer": 200,
    "n_embd": 1_000_000,
    "n_mels": 1000,
    "members": 1000,
    "short_conv": 1000,
    "predict_ahead": 100,
    "vocab_size": 10_000_000,
    "string_clips": 1000,
    "spec_masks": 1000,
    "eval_batches": 1_000_000,
    "sample_tokens": 1_000_000,
}
MOST_OF_ANY = 2**31 - 1
"""Counters on a device are int32."""
BYTES_PER_TOKEN = 32
"""Of a batch while it is made, at least: see texts.random_batch."""


def check_memory(config: Config) -> None:
    """Raises UserError for a batch that cannot fit into the host's memory.

    Only before training: a run that was trained on a larger machine can be sampled here.
    """
    is_text = isinstance(config.data, TextDataConfig)  # whose windows are all of one length
    n_tokens = config.model.block_size if is_text else 1
    require_memory("model.block-size", n_tokens, n_tokens * BYTES_PER_TOKEN)
    batch_size = config.train.batch_size
    require_memory("train.batch-size", batch_size, batch_size * n_tokens * BYTES_PER_TOKEN)


def check(config: Config) -> None:
    """Raises UserError for the first value that cannot work, naming it and the fix."""
    check_kinds(config)
    _check_sizes(config)
    _check_model(config)
    _check_data(config)
    _check_training(config)
    _check_mesh(config.mesh)
    _check_members(config)
    require(0 <= config.seed < 2**32, "seed", config.seed, "in [0, 2**32)")


def check_kinds(config: Config) -> None:
    """Every kind of model needs its own kind of data."""
    model, data = type(config.model), type(config.data)
    if model not in DATA_OF_MODEL:
        kinds = ", ".join(cls.__name__ for cls in DATA_OF_MODEL)
        raise UserError(f"model is a {model.__name__}, but must be one of {kinds}")
    if data is not DATA_OF_MODEL[model]:
        raise UserError(
            f"a {model.__name__} needs data={DATA_OF_MODEL[model].__name__}(...), but this config "
            f"has {data.__name__}"
        )


def _check_sizes(config: Config) -> None:
    for section in ("model", "data", "optim", "mesh", "train"):
        for name, value in vars(getattr(config, section)).items():
            if isinstance(value, int):
                most = MOST.get(name, MOST_OF_ANY)
                flag = f"{section}.{name}".replace("_", "-")
                require(abs(value) <= most, flag, value, f"at most {most:,}")


def _check_model(config: Config) -> None:
    model = config.model
    sizes = ["block_size"]
    if isinstance(model, GPTConfig):
        sizes += ["n_layer", "n_head", "n_embd"]
    if isinstance(model, EncoderDecoderConfig | SpeechConfig):
        sizes += ["n_encoder_layer", "source_block_size"]
    if isinstance(model, SpeechConfig):
        sizes += ["n_mels"]
    _require_all("model", model, sizes, lambda n: n >= 1, "at least 1")
    if not isinstance(model, GPTConfig):
        return
    require(0 <= model.dropout < 1, "model.dropout", model.dropout, "in [0, 1)")
    is_width = model.short_conv == 0 or model.short_conv >= 2
    require(is_width, "model.short-conv", model.short_conv, "0, or at least 2")
    ahead, rule = model.predict_ahead, f"in [0, {model.block_size}), the block size"
    require(0 <= ahead < model.block_size, "model.predict-ahead", ahead, rule)
    softcap, rule = model.logit_softcap, ">= 0 and finite"
    require(0 <= softcap < math.inf, "model.logit-softcap", softcap, rule)
    temperature, rule = model.training_temperature, "> 0 and finite"
    require(0 < temperature < math.inf, "model.training-temperature", temperature, rule)
    if model.n_embd % model.n_head:
        divisors = [h for h in range(1, model.n_embd + 1) if model.n_embd % h == 0]
        near = min(divisors, key=lambda h: abs(h - model.n_head))
        raise UserError(
            f"--model.n-embd {model.n_embd} is not divisible by --model.n-head {model.n_head}; "
            f"{near} heads would fit"
        )
    is_even = model.position != "rotary" or model.n_embd // model.n_head % 2 == 0
    width = f"{model.n_embd}/{model.n_head}"
    require(is_even, "model.n-embd / n-head", width, "even for rotary positions")


def _check_data(config: Config) -> None:
    model, data = config.model, config.data
    # Pairs and recordings have a test split of the same size.
    is_text = isinstance(data, TextDataConfig)
    most, rule = (1, "in (0, 1)") if is_text else (0.5, "in (0, 0.5)")
    require(0 < data.val_fraction < most, "data.val-fraction", data.val_fraction, rule)
    if isinstance(data, PairsDataConfig) and isinstance(model, EncoderDecoderConfig):
        can_share = not model.share_embeddings or data.source_tokenizer == data.tokenizer
        rule = f"{data.tokenizer}, as --data.tokenizer, for --model.share-embeddings"
        require(can_share, "data.source-tokenizer", data.source_tokenizer, rule)
    if isinstance(data, SpeechDataConfig):
        shares = ("speed_change", "tempo_change", "voice_change", "channel_change", "noise")
        _require_all("data", data, shares, lambda x: 0 <= x <= 0.9, "in [0, 0.9]")
        padded = isinstance(model, SpeechConfig) and model.pad_source
        can_stretch, rule = not (padded and data.tempo_change), "0 with --model.pad-source"
        require(can_stretch, "data.tempo-change", data.tempo_change, rule)
        counts = ("string_clips", "synthetic_clips")
        _require_all("data", data, counts, lambda n: n >= 1, "at least 1")
        _require_all("data", data, ("extra_clips", "spec_masks"), lambda n: n >= 0, "at least 0")


def _check_training(config: Config) -> None:
    train, optim = config.train, config.optim
    counts = ("max_steps", "batch_size", "members", "eval_interval", "log_interval")
    _require_all("train", train, counts, lambda n: n >= 1, "at least 1")
    _require_all("train", train, ("eval_batches", "sample_tokens"), lambda n: n >= 0, ">= 0")
    micro = train.micro_batch_size
    divides = micro == 0 or (micro > 0 and train.batch_size % micro == 0)
    require(divides, "train.micro-batch-size", micro, f"a divisor of {train.batch_size}, or 0")
    rates = ("learning_rate", "muon_learning_rate")
    _require_all("optim", optim, rates, lambda x: 0 < x < math.inf, "> 0 and finite")
    others = ("warmup_steps", "weight_decay", "grad_clip")
    _require_all("optim", optim, others, lambda x: 0 <= x < math.inf, ">= 0 and finite")
    _require_all("optim", optim, ("beta2",), lambda x: 0 <= x < 1, "in [0, 1)")
    _require_all("optim", optim, ("final_fraction",), lambda x: 0 <= x <= 1, "in [0, 1]")
    _require_all("optim", optim, ("decay_fraction",), lambda x: 0 < x <= 1, "in (0, 1]")


def _check_members(config: Config) -> None:
    train, mesh = config.train, config.mesh
    if train.members == 1:
        return
    if train.init_from:
        raise UserError(
            f"--train.members {train.members} with --train.init-from {train.init_from} would be "
            "equal models; leave one out"
        )
    if (mesh.fsdp, mesh.model) != (1, 1):
        raise UserError(
            f"--train.members {train.members} is for devices that each have whole models; leave "
            "--mesh.fsdp and --mesh.model out"
        )


def _check_mesh(mesh: MeshConfig) -> None:
    axes = ("data", "fsdp", "model")
    rule = "at least 1, or -1 for all other devices"
    _require_all("mesh", mesh, axes, lambda n: n >= 1 or n == -1, rule)
    if [mesh.data, mesh.fsdp, mesh.model].count(-1) > 1:
        sizes = f"{mesh.data} x {mesh.fsdp} x {mesh.model}"
        raise UserError(f"--mesh.data x fsdp x model is {sizes}, but only one of them can be -1")


def _require_all(
    prefix: str, section: Any, names: Iterable[str], ok: Callable[[Any], bool], rule: str
) -> None:
    """`require` for each of these fields of a section."""
    for name in names:
        value = getattr(section, name)
        require(ok(value), f"{prefix}.{name}".replace("_", "-"), value, rule)


def check_types(section: Any, prefix: str = "") -> None:
    """Raises UserError for a field whose value is not of its type; dataclasses do not check."""
    for name, hint in typing.get_type_hints(type(section)).items():
        value = getattr(section, name)
        flag = f"--{prefix}{name}".replace("_", "-")
        choices = typing.get_args(hint)
        if typing.get_origin(hint) is Literal:
            fits, wanted = value in choices, f"one of {', '.join(choices)}"
        else:
            # An int may stand for a float; a bool is no number here, though isinstance says so.
            classes = choices or ((int, float) if hint is float else (hint,))
            fits = isinstance(value, classes) and (hint is bool or not isinstance(value, bool))
            wanted = " or ".join(cls.__name__ for cls in choices or (hint,))
        if isinstance(value, Path) and not can_name_a_file(str(value)):
            fits, wanted = False, "the name of a file"
        if not fits:
            # A section in the wrong place is shown by its type, because its fields are too long.
            shown = type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
            raise UserError(f"{flag} is {shown}, but must be {wanted}")
        if dataclasses.is_dataclass(value):
            check_types(value, f"{prefix}{name}.")

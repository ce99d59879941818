"""A new run that starts from the parameters of another: --train.init-from RUN.

The other run may have been trained here or imported. The new one has its model and its vocabulary,
and what data it likes; its context may be shorter, for which the first of learned positions do.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax import config_json, models
from gptjax.config import Config, GPTConfig, ModelConfig
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import UserError
from gptjax.quantization.quant_array import FLOAT32
from gptjax.runs import checkpoints, run_directory

FREE = ("dropout", "zero_init")
"""Of the model: what shapes no parameter and changes no logits."""


def vocabulary(config: Config, folder: Path) -> Tokenizer | None:
    """The tokenizer that the data of the run in a folder are read with; None if it makes its own.

    Raises UserError when there are no parameters to start from, or none that fit.
    """
    source = config.train.init_from
    if source is None:
        return None
    if checkpoints.committed_steps(folder):  # what it started from may be gone
        return run_directory.read_tokenizer(folder)
    had = run_directory.read_config(source).model
    if run_directory.read_format(source) != FLOAT32:
        raise UserError(
            f"--train.init-from {source} is quantized; name the run that it was made from"
        )
    if not checkpoints.committed_steps(source):
        raise UserError(f"--train.init-from {source} has no checkpoint yet; let it train first")
    if type(had) is not type(config.model):
        kinds = [type(model).__name__.removesuffix("Config") for model in (had, config.model)]
        raise UserError(f"--train.init-from {source} is a {kinds[0]}, but this is a {kinds[1]}")
    if flags := _differences(had, config.model):
        raise UserError(
            f"--train.init-from {source} has another model; as that has it, give {' '.join(flags)}"
        )
    return run_directory.read_tokenizer(source)


def _differences(had: ModelConfig, wanted: ModelConfig) -> list[str]:
    """The options that would make a model fit the parameters of another."""
    ours = config_json.flatten(wanted)
    learned = isinstance(had, GPTConfig) and had.position == "learned"
    flags = []
    for name, theirs in config_json.flatten(had).items():
        # Positions behind those that were learned do not exist.
        shorter = name.endswith("block_size") and (ours[name] <= theirs or not learned)
        if ours[name] == theirs or name in FREE or shorter:
            continue
        flag = name.replace("_", "-")
        is_switch = isinstance(theirs, bool)
        no = "no-" if is_switch and not theirs else ""
        flags.append(f"--model.{no}{flag}" + ("" if is_switch else f" {theirs}"))
    return flags


def parameters(config: Config, vocabulary: Tokenizer, like: Any) -> Any:
    """The best parameters of the run to start from, placed as `like` (shapes with shardings)."""
    source = config.train.init_from
    assert source is not None
    model = models.build(run_directory.read_config(source).model, vocabulary)
    _, params = checkpoints.load_params(source, model)

    def place(ours: Any, theirs: Any) -> jax.Array:
        rows = tuple(slice(n) for n in ours.shape)  # of positions fewer, of all else the same
        whole = np.asarray(theirs)[rows]
        return jax.make_array_from_callback(ours.shape, ours.sharding, lambda index: whole[index])

    return jax.tree.map(place, like, params)

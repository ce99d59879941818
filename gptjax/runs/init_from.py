"""A new run that starts from the parameters of another: --train.init-from RUN.

The other run may have been trained here or imported. The new run has the same model and vocabulary,
on any data. Its context may be shorter: then it keeps the first of the learned positions.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax import config_json, models
from gptjax.config import Config, GPTConfig, ModelConfig
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import UserError
from gptjax.runs import checkpoints, run_directory

FREE = ("dropout", "drop_attention", "zero_init", "training_temperature")
"""Fields of the model that change neither the shapes of parameters nor the logits."""


def vocabulary(config: Config, folder: Path) -> Tokenizer | None:
    """The tokenizer for the data of the run in `folder`; None if that run makes its own.

    Raises UserError if the run to start from has no parameters, or none that fit.
    """
    source = config.train.init_from
    if source is None:
        return None
    if checkpoints.committed_steps(folder):  # a resumed run does not need the other one any more
        return run_directory.read_tokenizer(folder)
    run_directory.require_one_model(source, "--train.init-from")
    if not checkpoints.committed_steps(source):
        raise UserError(f"--train.init-from {source} has no checkpoint yet; let it train first")
    run_directory.require_like(source, config.model, "--train.init-from")
    if flags := _differences(run_directory.read_config(source).model, config.model):
        raise UserError(
            f"--train.init-from {source} has another model; for the same one add {' '.join(flags)}"
        )
    return run_directory.read_tokenizer(source)


def _differences(had: ModelConfig, wanted: ModelConfig) -> list[str]:
    """The options that give a model the shapes of another model's parameters."""
    ours = config_json.flatten(wanted)
    learned = isinstance(had, GPTConfig) and had.position == "learned"
    flags = []
    for name, theirs in config_json.flatten(had).items():
        # There are no learned positions beyond the other model's block_size.
        shorter = name.endswith("block_size") and (ours[name] <= theirs or not learned)
        if ours[name] == theirs or name in FREE or shorter:
            continue
        flag = name.replace("_", "-")
        is_switch = isinstance(theirs, bool)
        no = "no-" if is_switch and not theirs else ""
        flags.append(f"--model.{no}{flag}" + ("" if is_switch else f" {theirs}"))
    return flags


def parameters(config: Config, vocabulary: Tokenizer, like: Any) -> Any:
    """The best parameters of the run to start from, with the shardings of the shapes `like`."""
    source = config.train.init_from
    assert source is not None
    model = models.build(run_directory.read_config(source).model, vocabulary)
    _, params = checkpoints.load_params(source, model)

    def place(ours: Any, theirs: Any) -> jax.Array:
        rows = tuple(slice(n) for n in ours.shape)  # only positions can be fewer
        whole = np.asarray(theirs)[rows]
        return jax.make_array_from_callback(ours.shape, ours.sharding, lambda index: whole[index])

    return jax.tree.map(place, like, params)

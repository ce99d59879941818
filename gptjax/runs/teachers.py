"""Distillation: a new model learns from the probabilities of trained runs, --train.teacher RUN.

Hinton et al. 2015, arXiv:1503.02531. The teacher's probabilities say which wrong tokens are nearly
right, so each position teaches more than one token.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gptjax import config_json, models
from gptjax.config import Config
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import UserError
from gptjax.runs import checkpoints, run_directory
from gptjax.training import Batch

LENGTHS = ("block_size", "source_block_size")
"""Of these a teacher needs as much as its student, or more."""


def load(runs: list[Path], vocabulary: Tokenizer) -> Callable[[Batch], Array] | None:
    """A function from a batch to the mean of the runs' probabilities (B, T, V), or None.

    runs: of `check`; without a teacher none. Raises UserError for another vocabulary.
    """
    return mean_probabilities([_load(run, vocabulary) for run in runs]) if runs else None


def check(config: Config) -> list[Path]:
    """The teachers of a configuration. Reads their configurations and vocabularies, but no data.

    --train.teacher is a run, or a folder of runs. Raises UserError for a folder that is neither,
    and for a run that cannot teach this one.
    """
    folder = config.train.teacher
    if folder is None:
        return []
    runs = [folder] if (folder / "config.json").exists() else _runs_in(folder)
    for run in runs:
        run_directory.require_like(run, config.model, "--train.teacher")
        run_directory.read_tokenizer(run)
        if not checkpoints.committed_steps(run):
            raise UserError(f"--train.teacher {run} has no checkpoint yet; let it train first")
        had = config_json.flatten(run_directory.read_config(run).model)
        wanted = config_json.flatten(config.model)
        for name in LENGTHS:
            if had.get(name, 0) < wanted.get(name, 0):
                flag = "--model." + name.replace("_", "-")
                raise UserError(
                    f"--train.teacher {run} has {flag} {had[name]}, {wanted[name]} here"
                )
    return runs


def mean_probabilities(teachers: list[tuple[Any, Any]]) -> Callable[[Batch], Array]:
    """A function from a batch to the mean probabilities (B, T, V) of (model, parameters) pairs."""

    def probabilities(batch: Batch) -> Array:
        def of(model: Any, params: Any) -> Array:
            logits_BTV, _ = model.apply(
                {"params": params}, batch["tokens"], **models.source_of(batch)
            )
            return jax.nn.softmax(logits_BTV)

        return jnp.mean(jnp.stack([of(*teacher) for teacher in teachers]), axis=0)

    return probabilities


def _runs_in(folder: Path) -> list[Path]:
    runs = sorted(path.parent for path in folder.glob("*/config.json"))
    if not runs:
        raise UserError(f"--train.teacher {folder} is neither a run nor a folder of runs")
    return runs


def _load(run: Path, vocabulary: Tokenizer) -> tuple[Any, Any]:
    """(model, parameters) of a run that can teach."""
    if run_directory.read_tokenizer(run).to_dict() != vocabulary.to_dict():
        raise UserError(
            f"--train.teacher {run} has another vocabulary; a teacher must have been trained on "
            "the same data"
        )
    model = models.of_run(run_directory.read_config(run), vocabulary)
    return model, checkpoints.load_params(run, model)[1]

"""From a configuration to everything that the training loop needs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from gptjax import config_json, evaluation, models, optim, training
from gptjax.command_line import Launch
from gptjax.config import Config
from gptjax.data import dataset as data
from gptjax.data.dataset import Data
from gptjax.data.texts import TextData
from gptjax.errors import UserError
from gptjax.kernels import choice
from gptjax.models import Model
from gptjax.runs import init_from, resuming, run_directory
from gptjax.runs.checkpoints import KEEP_LATEST, Checkpoints, committed_steps
from gptjax.runs.report import NullReporter, Reporter, check_trackers
from gptjax.scale import devices, memory, processes, sharding
from gptjax.scale.mesh import describe as describe_mesh
from gptjax.scale.mesh import local_rows, make_mesh, n_row_groups, put
from gptjax.training import Batch, Params, TrainState


class Run(NamedTuple):
    """One training run, ready to start or continue."""

    config: Config
    folder: Path
    dataset: Data
    model: Model
    mesh: Mesh
    micro_batch_size: int
    steps_per_dispatch: int
    """Most steps in one call to the device."""
    state: TrainState
    """Before the first step, or from the last checkpoint."""
    train_steps: Callable[[TrainState, Batch, int], tuple[TrainState, training.StepMetrics]]
    mean_loss: Callable[[Params, Any], float]
    learning_rate: optax.Schedule
    checkpoints: Checkpoints
    report: Reporter | NullReporter

    def load_batches(self, steps: range) -> tuple[range, Batch]:
        """The steps and their batches, moved to the devices."""
        batch_size = self.config.train.batch_size
        rows = local_rows(batch_size, self.mesh)
        n_steps = self.steps_per_dispatch
        batches = data.training_batches(self.dataset, self.config, steps, n_steps, rows)
        return steps, put(batches, batch_size, self.mesh)

    def validation(self) -> dict[str, Iterator[Batch]]:
        """The batches of each validation loss, moved to the devices one group at a time."""

        def split(
            batch_size: int, batches_of: Callable[[slice], Iterator[Batch]]
        ) -> Iterator[Batch]:
            rows = local_rows(batch_size, self.mesh)
            return (put(group, batch_size, self.mesh) for group in batches_of(rows))

        config, size, dataset = self.config, self.micro_batch_size, self.dataset
        whole = split(size, lambda rows: dataset.validation(config, size, rows))
        splits = {"val_loss": whole}
        if config.train.eval_batches and isinstance(dataset, TextData):
            sampled = split(
                config.train.batch_size, lambda rows: dataset.sampled_validation(config, rows)
            )
            splits["val_loss_sampled"] = sampled  # the original project's measure
        return splits


def set_up(config: Config, launch: Launch) -> Run:
    """Loads the data, builds the model, and restores the last checkpoint if there is one.

    Raises UserError for bad input, before anything is compiled.
    """
    c, folder = config.train, launch.folder
    devices.require_backend()
    check_trackers(launch.trackers)
    tokenizer = init_from.vocabulary(config, folder)
    dataset = data.load(config, tokenizer)
    processes.check_same("run", config_json.flatten(config) | {"data": dataset.sha256})
    mesh = make_mesh(config)
    choice.set_attention(None if c.attention == "auto" else c.attention)
    model = models.build(config.model, dataset.tokenizer, devices.compute_dtype(c), c.remat)
    optimizer = optim.build(config.optim, c.max_steps)
    tokens_per_sequence = dataset.tokens_per_sequence(config)
    micro_batch_size = devices.micro_batch_size(
        c, config.model, tokens_per_sequence, n_row_groups(mesh)
    )

    def first_state(params: Any = None) -> TrainState:
        params = models.init(model, config.seed) if params is None else params
        return training.init_state(params, optimizer)

    shapes = jax.eval_shape(first_state)
    n_params, tokens_per_step = models.count(shapes.params), c.batch_size * tokens_per_sequence
    state_sharding = sharding.shardings(shapes, mesh)
    shapes = sharding.with_sharding(shapes, state_sharding)
    run_directory.check_disk(folder, shapes, n_checkpoints=KEEP_LATEST + 2)
    if launch.resume and not committed_steps(folder):
        raise UserError(f"--resume: {folder} has no checkpoint to continue; leave --resume out")
    checkpoints = Checkpoints(folder / "checkpoints", KEEP_LATEST)
    step = max(checkpoints.steps(), default=None)
    changes = [] if step is None else resuming.check_resumable(folder, config, dataset)
    state = None if step is None else checkpoints.restore(step, shapes)

    report: Reporter | NullReporter = NullReporter()
    if processes.is_first():
        run_directory.describe_run(folder, config, dataset)
        report = Reporter(folder, config, step or 0, tokens_per_step, launch.trackers)
        report.say(_headline(config, mesh, n_params, tokens_per_step, step or 0))
        report.say(memory.describe(config, model, shapes, micro_batch_size, tokens_per_sequence))
    sizes = "  ".join(f"{n:,} {of.replace('_', ' ')}" for of, n in dataset.sizes.items())
    report.say(f"data {dataset.source}  {sizes}  vocabulary {model.vocab_size}")
    for change in changes:
        report.say(f"changed since the last start: {change}")
    if step is not None and step < c.max_steps:
        report.say(f"continuing at step {step}")
    elif step is not None:
        report.say(f"complete at step {step}; raise --train.max-steps or name another --run-dir")

    if state is None:
        params = None
        if tokenizer is not None:
            report.say(f"starting from the parameters of {c.init_from}")
            params = init_from.parameters(config, tokenizer, shapes.params)
        state = jax.jit(first_state, out_shardings=state_sharding)(params)
    steps_per_dispatch = 1  # batches of pairs and recordings differ in shape
    if dataset.one_shape:
        steps_per_dispatch = devices.steps_per_dispatch(n_params, tokens_per_step)
    return Run(
        config=config,
        folder=folder,
        dataset=dataset,
        model=model,
        mesh=mesh,
        micro_batch_size=micro_batch_size,
        steps_per_dispatch=min(steps_per_dispatch, c.max_steps),
        state=state,
        train_steps=training.make_train_steps(
            model, optimizer, micro_batch_size, config.seed, mesh
        ),
        mean_loss=evaluation.make_evaluate(model, mesh),
        learning_rate=optim.schedule(config.optim, c.max_steps, config.optim.learning_rate),
        checkpoints=checkpoints,
        report=report,
    )


def _headline(config: Config, mesh: Mesh, n_params: int, tokens_per_step: float, step: int) -> str:
    """Devices, dtype, size, and an estimate of the time from the measured matmul speed."""
    c = config.train
    dtype = devices.compute_dtype(c)
    n_steps = max(0, c.max_steps - step)
    tokens_per_second = mesh.size * devices.training_speed(n_params, devices.matmul_rate(dtype))
    minutes = n_steps * tokens_per_step / tokens_per_second / 60
    return (
        f"{describe_mesh(mesh)}  {np.dtype(dtype).name}  {n_params:,} parameters  "
        f"about {minutes:.1f} min for {n_steps} steps"
    )

"""From a configuration to everything that the training loop needs."""

import functools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from gptjax import config_json, evaluation, models, optim, training
from gptjax.config import Config, GPTConfig
from gptjax.data import dataset as data
from gptjax.data.dataset import Data, prefetch
from gptjax.data.texts import TextData
from gptjax.decoding import previews
from gptjax.ensemble import Ensemble
from gptjax.errors import UserError
from gptjax.kernels import choice
from gptjax.launch import Launch
from gptjax.models import Model
from gptjax.pace import Pace, first_lengths, step_ranges
from gptjax.runs import init_from, resuming, run_directory, teachers
from gptjax.runs.checkpoints import KEEP_LATEST, Checkpoints, committed_steps, restore_newest
from gptjax.runs.report import NullReporter, Reporter, check_trackers
from gptjax.scale import compilation, devices, memory, processes, sharding
from gptjax.scale.compilation import CompileAhead
from gptjax.scale.mesh import describe as describe_mesh
from gptjax.scale.mesh import local_rows, make_mesh, n_row_groups, put
from gptjax.training import Batch, Params, TrainState

# What is compiled ahead.
EVALUATION, TRAIN_STEP, SAMPLE = "evaluation", "train step", "sample"


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
    compile_ahead: CompileAhead
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

    def batches(self, pace: Pace) -> Generator[tuple[range, Batch]]:
        """The steps and batches of each call to the device, to the last step of the run.

        While the device runs some steps, a thread loads the batches of the next ones.
        """
        first, most = int(self.state.step), self.steps_per_dispatch
        return prefetch(self.load_batches, step_ranges(self.config.train, first, most, pace))

    def preview(self, params: Params) -> str:
        """What the model writes: see previews.preview."""
        self.compile_ahead.wait(SAMPLE)
        with jax.set_mesh(self.mesh):
            return previews.preview(self.dataset, self.model, params, self.config)

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
            sampled = split(size, lambda rows: dataset.sampled_validation(config, size, rows))
            splits["val_loss_sampled"] = sampled  # the original project's measure
        return splits


def set_up(config: Config, launch: Launch) -> Run:
    """Loads the data, builds the model, and restores the last checkpoint if there is one.

    Raises UserError for bad input, before anything is compiled.
    """
    c, folder = config.train, launch.folder
    devices.require_backend()
    compilation.use_cache(launch.compilation_cache)
    check_trackers(launch.trackers)
    teacher_runs = teachers.check(config)
    tokenizer = init_from.vocabulary(config, folder)
    dataset = resuming.keep_vocabulary(folder, config, data.load(config, tokenizer))
    facts = {"data": dataset.sha256, **dataset.sizes}
    processes.check_same("run", config_json.flatten(config) | facts)
    mesh = make_mesh(config)
    attention = None if c.attention == "auto" else c.attention
    choice.check(attention, config.model, devices.compute_dtype(c), mesh.size)
    choice.set_attention(attention, mesh.size)
    model = models.of_run(config, dataset.tokenizer)
    teacher = teachers.load(teacher_runs, dataset.tokenizer)
    optimizer = optim.build(config.optim, c.max_steps)
    if isinstance(model, Ensemble):
        optimizer = model.each_optimizer(optimizer)
    tokens_per_sequence = dataset.tokens_per_sequence(config)
    micro_batch_size = devices.micro_batch_size(
        c, config.model, tokens_per_sequence, n_row_groups(mesh)
    )

    def first_state(params: Any = None) -> TrainState:
        params = models.init(model, config.seed) if params is None else params
        return training.init_state(params, optimizer)

    shapes = jax.eval_shape(first_state, None)  # as it is called below: one trace for both
    n_params, tokens_per_step = models.count(shapes.params), c.batch_size * tokens_per_sequence
    state_sharding = sharding.shardings(shapes, mesh)
    shapes = sharding.with_sharding(shapes, state_sharding)
    run_directory.check_disk(folder, shapes, n_checkpoints=KEEP_LATEST + 2)
    if launch.resume and not committed_steps(folder):
        raise UserError(f"--resume: {folder} has no checkpoint to continue; leave --resume out")
    step = state = None
    notes: list[str] = []
    if committed_steps(folder):
        changes = resuming.check_resumable(folder, config, dataset)
        step, state, damaged = restore_newest(folder, shapes)
        notes = [f"changed since the last start: {change}" for change in changes]
        notes += [f"warning: {damaged}"] * bool(damaged)
    checkpoints = Checkpoints(folder / "checkpoints", KEEP_LATEST)

    report: Reporter | NullReporter = NullReporter()
    if processes.is_first():
        resuming.remember_recordings(folder, dataset)
        run_directory.describe_run(folder, config, dataset)
        report = Reporter(folder, config, step or 0, tokens_per_step, launch.trackers)
        report.say(_headline(folder, config, mesh, n_params))
        fused = choice.is_fused(config.model, model.dtype)
        sizes = micro_batch_size, tokens_per_sequence
        report.say(memory.describe(config, model, shapes, *sizes, fused))
    sizes = "  ".join(f"{n:,} {of.replace('_', ' ')}" for of, n in dataset.sizes.items())
    if isinstance(dataset, TextData):
        report.say(f"data: {dataset.description}")
        report.say(f"      {sizes}  vocabulary {model.vocab_size}")
    else:
        report.say(f"data {dataset.source}  {sizes}  vocabulary {model.vocab_size}")
    for note in notes:
        report.say(note)
    if step is not None and step < c.max_steps:
        report.say(f"continuing at step {step}")
    elif step is not None:
        report.say(f"complete at step {step}; raise --train.max-steps or name another --run-dir")

    steps_per_dispatch = 1  # batches of pairs and recordings differ in shape
    if dataset.one_shape:
        steps_per_dispatch = devices.steps_per_dispatch(n_params, tokens_per_step, mesh.size)
    ahead = CompileAhead(report.say)
    sums = evaluation.make_sums(model, mesh)
    train_steps = training.make_train_steps(
        model, optimizer, micro_batch_size, config.seed, mesh, teacher
    )
    run = Run(
        config=config,
        folder=folder,
        dataset=dataset,
        model=model,
        mesh=mesh,
        micro_batch_size=micro_batch_size,
        steps_per_dispatch=min(steps_per_dispatch, c.max_steps),
        state=shapes,
        train_steps=ahead.before_calls(TRAIN_STEP, train_steps),
        mean_loss=functools.partial(evaluation.mean_loss, ahead.before_calls(EVALUATION, sums)),
        compile_ahead=ahead,
        learning_rate=optim.schedule(config.optim, c.max_steps, config.optim.learning_rate),
        checkpoints=checkpoints,
        report=report,
    )
    if not processes.several():
        _start_compiling(run, step or 0, train_steps, sums)
    try:
        if state is None:
            params = None
            if tokenizer is not None:
                report.say(f"starting from the parameters of {c.init_from}")
                params = init_from.parameters(config, tokenizer, shapes.params)
            state = jax.jit(first_state, out_shardings=state_sharding)(params)
    except BaseException:  # Ctrl-C too: do not wait for programs that nobody will call
        ahead.close()
        raise
    return run._replace(state=state)


def _start_compiling(run: Run, step: int, train_steps: Any, sums: Any) -> None:
    """Compiles, side by side in threads, what a start needs: evaluation, training, a sample."""
    c, state = run.config.train, run.state

    def train_step(n_steps: int) -> jax.stages.Lowered:
        _, batches = run.load_batches(range(step, step + 1))
        return train_steps.lower(state, _shapes(batches), n_steps)

    def evaluate() -> jax.stages.Lowered:
        group = next(run.validation()["val_loss"])
        return sums.lower(state.params, _shapes(group))

    def sample(lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Lowered:
        with jax.set_mesh(run.mesh):
            return lower()

    ahead = run.compile_ahead
    if not step:  # a run that continues may train first
        ahead.add(EVALUATION, evaluate)
    for n_steps in first_lengths(c, step, run.steps_per_dispatch):
        ahead.add(TRAIN_STEP, functools.partial(train_step, n_steps))
    if 0 < step < c.max_steps:
        ahead.add(EVALUATION, evaluate)
    if run.mesh.size == 1:
        for lower in previews.programs(run.dataset, run.model, state.params, run.config):
            ahead.add(SAMPLE, functools.partial(sample, lower))


def _shapes(arrays: Any) -> Any:
    """Shapes that carry the shardings of the arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays
    )


def _headline(folder: Path, config: Config, mesh: Mesh, n_params: int) -> str:
    """What runs where."""
    dtype = devices.compute_dtype(config.train)
    attention = ""
    if isinstance(config.model, GPTConfig):
        attention = f"  attention {choice.kind_of_model(config.model, dtype)}"
    n_members = config.train.members
    of_all = f"{n_members} models, " if n_members > 1 else ""
    return (
        f"{folder}  {of_all}{n_params:,} parameters  {config.train.max_steps:,} steps\n"
        f"{describe_mesh(mesh)}  {np.dtype(dtype).name}{attention}"
    )

"""Makes a trained run smaller, and tells what that costs: its quantization card.

    python -m gptjax.commands.quantize RUN --bits 8 --out RUN8 [--activations 8]
    python -m gptjax.commands.quantize RUN --bits 4 --out RUN4 [--group 32] [--qat-steps 500]

The new run holds parameters alone: `sample.py` and `gptjax evaluate` use it, training does not
continue it. The numbers themselves are those of quant_array.py.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.progress import track

from gptjax import evaluation, models, optim, training
from gptjax.atomic import write_json
from gptjax.command_line import parse_command
from gptjax.config import Config
from gptjax.data import dataset as data
from gptjax.data.dataset import Data
from gptjax.data.tokenizer import PairTokenizer, SpeechTokenizer
from gptjax.decoding import beam_search, sampling
from gptjax.decoding.sampling import Sampler
from gptjax.errors import TrainingDiverged, UserError, exit_codes
from gptjax.models import EncoderDecoder, Model, SpeechRecognizer
from gptjax.quantization.quant_array import (
    CHUNK,
    FLOAT32,
    Format,
    quantize_params,
    straight_through,
)
from gptjax.runs import checkpoints, resuming, run_directory
from gptjax.runs import init_from as finetune
from gptjax.scale import devices

QAT_LEARNING_RATE = 0.1
"""Peak of the fine-tuning's learning rates, as a share of those that the run was trained with."""
STEPS = "float32+steps"
"""Row of a run that trained as many steps more as the quantization-aware one, without rounding."""
FORMATS = {
    "float32": FLOAT32,
    "bf16": Format(16),
    "int8": Format(8),
    "int4": Format(4, group=CHUNK),
    "W8A8": Format(8, activation_bits=8),
}
"""Rows that every card has."""
BATCH_SIZES = (1, 32)
ROUNDS, SECONDS_PER_TURN = 5, 0.5
SAME = 0.95
"""Rates that differ by less are called the same."""
DECODED_TOKENS = 128
"""Tokens that a text model writes for the card, in each round and row."""
DECODED_SOURCES = 16
"""Sources that a model with an encoder writes for, at batch 1."""


@dataclass(frozen=True)
class Quantize:
    """Make a smaller copy of a trained run, and measure what that costs."""

    run: tyro.conf.Positional[Path]
    """Run directory that train.py made."""
    out: Path
    """Run directory to make."""
    bits: Literal[4, 8, 16] = 8
    """Of each number in a matrix: integers of 4 or 8 bits, or bfloat16."""
    group: int | None = None
    """Numbers of a column that share a scale, a multiple of 32; 0 is the whole column. By
    default 32 with 4 bits, else 0."""
    activations: Literal[0, 8] = 0
    """8 rounds what the matrices multiply to 8 bits, too."""
    qat_steps: int = 0
    """Steps of training with rounded weights (quantization-aware) before the rounding stays; and
    as many without rounding, for the card to compare with."""
    step: str = "best"
    """Which checkpoint: best, latest or a step."""


@dataclass(frozen=True)
class FakeQuantized:
    """A model that computes with its parameters rounded to a format, and learns as if not."""

    model: Model
    format: Format

    @property
    def dtype(self) -> Any:
        return self.model.dtype

    def apply(self, variables: dict[str, Any], *args: Any, **options: Any) -> Any:
        params = straight_through(variables["params"], self.format)
        return self.model.apply({"params": params}, *args, **options)


def quantize(command: Quantize) -> list[dict[str, Any]]:
    """Makes the run `command.out` and returns its card; see `card`.

    Raises UserError, before anything is computed, for a run or a format that cannot be.
    """
    devices.require_backend()
    form = _format(command)
    config = run_directory.read_config(command.run)
    if run_directory.read_format(command.run) != FLOAT32:
        raise UserError(f"{command.run} is quantized already; name the run that it was made from")
    if command.qat_steps < 0:
        raise UserError(f"--qat-steps is {command.qat_steps}, but must be 0 or more")
    if command.qat_steps and form.bits == 16:
        raise UserError(f"--qat-steps {command.qat_steps} is for --bits 4 or 8; leave it out")
    if not resuming.has_data(command.run):
        raise UserError(f"{command.run} was imported, with no data to measure a card on")
    with run_directory.new_run(command.out) as part:
        dataset = data.load(config, finetune.vocabulary(config, command.run))
        resuming.check_same_data(command.run, dataset)
        model = models.build(config.model, dataset.tokenizer, devices.compute_dtype(config.train))
        step, params = checkpoints.load_params(command.run, model, command.step)

        named = {name: quantize_params(params, of_row) for name, of_row in FORMATS.items()}
        name = _name(form) + ("+QAT" if command.qat_steps else "")
        if command.qat_steps:
            n_steps = command.qat_steps
            named[STEPS] = fine_tune(model, params, dataset, config, FLOAT32, step, n_steps)
            params = fine_tune(model, params, dataset, config, form, step, n_steps)
        named[name] = quantize_params(params, form)
        rows = card(model, named, dataset, config)
        checkpoints.save_finished(
            part,
            config,
            dataset.tokenizer,
            named[name],
            run_directory.read_environment(command.run)["data"],
            {"format.json": dataclasses.asdict(form)},
        )
        # orbax packs differently from save to save, by some kilobytes.
        of_saved = next(row for row in rows if row["format"] == name)
        of_saved["disk_bytes"] = checkpoints.disk_bytes(part)
        write_json(part / "quantization.json", rows)
    print(table(rows, saved=name))
    print(f"{name} in {command.out}")
    return rows


def _format(command: Quantize) -> Format:
    group = command.group
    if group is None:
        group = CHUNK if command.bits == 4 else 0
    if group % CHUNK or group < 0:
        raise UserError(f"--group is {group}, but must be a multiple of {CHUNK}, or 0")
    if command.bits == 16 and (command.group or command.activations):
        raise UserError("--bits 16 has neither a --group nor --activations; leave them out")
    return Format(command.bits, group, command.activations)


def _name(form: Format) -> str:
    """As rows of the card are called: int8, int4 (in groups of 32), W8A8."""
    if form.bits == 16:
        return "bf16"
    name = f"W{form.bits}A8" if form.activation_bits else f"int{form.bits}"
    usual = CHUNK if form.bits == 4 else 0
    return name if form.group == usual else f"{name} g{form.group}"


def fine_tune(
    model: Model,
    params: Any,
    dataset: Data,
    config: Config,
    form: Format,
    step: int,
    n_steps: int,
) -> Any:
    """The parameters after n_steps more, on the batches behind `step`, computed with as rounded.

    Quantization-aware training (Jacob et al. 2018, arXiv:1712.05877) of weights. The learning
    rates decay to zero from a tenth of the run's.
    """
    peak = dataclasses.replace(
        config.optim,
        learning_rate=QAT_LEARNING_RATE * config.optim.learning_rate,
        muon_learning_rate=QAT_LEARNING_RATE * config.optim.muon_learning_rate,
        schedule="linear",
        decay_fraction=1.0,
        final_fraction=0.0,
        warmup_steps=0,
    )
    tokens_per_sequence = dataset.tokens_per_sequence(config)
    micro_batch_size = devices.micro_batch_size(config.train, config.model, tokens_per_sequence)
    optimizer = optim.build(peak, n_steps)
    rounded: Any = FakeQuantized(model, form)
    train_steps = training.make_train_steps(rounded, optimizer, micro_batch_size, config.seed)
    state = training.init_state(jax.tree.map(jnp.copy, params), optimizer)  # train_steps donates it
    for i in track(range(step, step + n_steps), "fine-tuning", transient=True):
        batches = data.training_batches(dataset, config, range(i, i + 1), capacity=1)
        state, metrics = train_steps(state, batches, 1)
        if not np.isfinite(metrics.loss[0]):
            raise TrainingDiverged(
                f"fine-tuning step {i}: loss {metrics.loss[0]}; nothing is saved"
            )
    return state.params


def card(
    model: Model, named: dict[str, Any], dataset: Data, config: Config
) -> list[dict[str, Any]]:
    """What each set of parameters costs and is worth on this device, a row for each name.

    bits: of a number, scales among them; disk_bytes: a checkpoint's files; memory_bytes: the
    arrays; val_loss: nats per token of the whole split; delta: that minus the first row's;
    tokens_per_second_1 and _32: of greedy decoding, the median of interleaved rounds.
    """
    tokens_per_sequence = dataset.tokens_per_sequence(config)
    batch_size = devices.micro_batch_size(config.train, config.model, tokens_per_sequence)
    mean_loss = evaluation.make_evaluate(model)
    rows = []
    for name, params in track(named.items(), "measuring losses", transient=True):
        memory_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        val_loss = mean_loss(params, dataset.validation(config, batch_size))
        rows.append(
            {
                "format": name,
                "bits": round(8 * memory_bytes / models.count(params), 2),
                "disk_bytes": disk_bytes(params),
                "memory_bytes": memory_bytes,
                "val_loss": val_loss,
                "delta": val_loss - (rows[0]["val_loss"] if rows else val_loss),
            }
        )
    for n in BATCH_SIZES:
        decode = decoder(model, dataset, config, n)
        rates = decoding_rates({name: partial(decode, params) for name, params in named.items()})
        for row in rows:
            row[f"tokens_per_second_{n}"] = round(rates[row["format"]], 1)
    return rows


def disk_bytes(params: Any) -> int:
    """Bytes of the files of a checkpoint of these parameters."""
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoints.Checkpoints(Path(folder) / "checkpoints", keep_latest=1)
        saved.save_params(params)
        saved.close()
        return checkpoints.disk_bytes(Path(folder))


def decoder(model: Model, dataset: Data | None, config: Config, n: int) -> Callable[[Any], int]:
    """A function that decodes a batch of n greedily and returns the number of tokens made.

    A text model writes on from one token; one with an encoder writes for the first sources of the
    validation split of its data set.
    """
    if not isinstance(model, EncoderDecoder | SpeechRecognizer):
        prompt_BT, greedy = np.zeros((n, 1), np.int32), Sampler(temperature=0)

        def write(params: Any) -> int:
            return sampling.complete(model, params, prompt_BT, DECODED_TOKENS, sampler=greedy).size

        return write
    assert dataset is not None
    n_sources = max(n, DECODED_SOURCES)
    batches = next(iter(dataset.validation(config, n_sources)))
    sources, masks = batches["source"][0], batches["source_mask"][0]
    tok = dataset.tokenizer
    assert isinstance(tok, PairTokenizer | SpeechTokenizer)
    if isinstance(tok, SpeechTokenizer):
        end, start_P = tok.end, jnp.array(tok.start_ids, jnp.int32)
    else:
        end, start_P = tok.boundary, None

    def transduce(params: Any) -> int:
        beams = [
            beam_search.beam_search(
                model, params, sources[i : i + n], masks[i : i + n], end, start_P=start_P
            )
            for i in range(0, n_sources, n)
        ]
        return sum(int(found.length_BN.sum()) for found in beams)

    return transduce


def decoding_rates(decoders: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Tokens per second of each of them, in turn: a slow minute hits all."""
    rates: dict[str, list[float]] = {name: [] for name in decoders}
    for decode in decoders.values():
        decode()  # compiles
    for _ in track(range(ROUNDS), "measuring decoding", transient=True):
        for name, decode in decoders.items():
            n_tokens, start, seconds = 0, time.perf_counter(), 0.0
            while not n_tokens or seconds < SECONDS_PER_TURN:
                n_tokens += decode()
                seconds = time.perf_counter() - start
            rates[name].append(n_tokens / seconds)
    return {name: statistics.median(rates[name]) for name in decoders}


def table(rows: list[dict[str, Any]], saved: str) -> str:
    """The card in words, sizes and rates also as multiples of the first row's."""
    first, losses = rows[0], {row["format"]: row["val_loss"] for row in rows}
    lines = [
        f"{'':15}{'bits':>6}{'on disk':>18}{'in memory':>18}{'val_loss':>10}{'delta':>10}"
        f"{'tokens/s, batch 1':>20}{'batch 32':>18}"
    ]
    for row in rows:
        cells = f"{row['format'] + (' <' if row['format'] == saved else ''):15}{row['bits']:6.2f}"
        for name in ("disk_bytes", "memory_bytes"):
            cells += f"{row[name] / 1e6:9.2f} MB {first[name] / row[name]:4.2f}x"
        cells += f"{row['val_loss']:10.4f}{row['delta']:+10.5f}"
        for n, width in zip(BATCH_SIZES, (14, 12), strict=True):
            rate, of_first = (r[f"tokens_per_second_{n}"] for r in (row, first))
            cells += f"{rate:{width},.0f} {rate / of_first:4.2f}x"
        lines.append(cells)
    if STEPS in losses:
        lines.append(
            f"{saved} compared with {STEPS}, which trained as long: "
            f"{losses[saved] - losses[STEPS]:+.5f}"
        )
    return "\n".join([*lines, slower(rows)])


def slower(rows: list[dict[str, Any]]) -> str:
    """Which formats decode slower than the first row's, in words."""
    shares = [
        (row["format"], n, row[f"tokens_per_second_{n}"] / rows[0][f"tokens_per_second_{n}"])
        for row in rows
        for n in BATCH_SIZES
    ]
    listed = [f"{name} at batch {n} ({share:.2f})" for name, n, share in shares if share < SAME]
    margin = f"slower than {rows[0]['format']} by more than {1 - SAME:.0%}"
    return f"{margin}: {', '.join(listed) or 'none'}"


def main(argv: list[str]) -> None:
    with exit_codes():
        quantize(parse_command(Quantize, argv, "python -m gptjax.commands.quantize"))


if __name__ == "__main__":
    main(sys.argv[1:])

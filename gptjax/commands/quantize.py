"""gptjax quantize: a smaller copy of a trained run, and a card that says what it costs."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from gptjax import models
from gptjax.atomic import write_json
from gptjax.command_line import parse_command
from gptjax.config_checks import MOST_OF_ANY, require
from gptjax.data import dataset as data
from gptjax.errors import UserError, exit_codes
from gptjax.quantization import card
from gptjax.quantization.fine_tuning import fine_tune
from gptjax.quantization.quant_array import CHUNK, FLOAT32, Format, quantize_params
from gptjax.runs import checkpoints, init_from, resuming, run_directory
from gptjax.scale import devices


@dataclass(frozen=True)
class Quantize:
    """Make a smaller copy of a trained run, and measure size, loss and speed.

    The new run holds parameters only. It can be sampled and evaluated, but not trained further.

    examples:
        gptjax quantize runs/gpt_cpu --out runs/int8
        gptjax quantize runs/gpt_cpu --bits 4 --qat-steps 400 --out runs/int4
        gptjax quantize runs/gpt_cpu --bits ternary --qat-steps 1600 --out runs/tiny
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: Path
    """Run directory to make."""
    bits: Literal["ternary", 2, 3, 4, 8, 16] = 8
    """Bits of each weight. 2 to 8: integers with scales. ternary: -1, 0 or 1 with scales, in 1.6
    bits. Below 4, embeddings and output head have 4, and it takes --qat-steps to keep the loss.
    16: bfloat16."""
    group: int | None = None
    """Weights of a column that share a scale, a multiple of 32, of 10 with --bits 3, of 20 with
    --bits ternary. 0: the whole column. Default: 32 with --bits 4, else 0."""
    activations: Literal[0, 8] = 0
    """8: also round the inputs of matrix products to 8 bits."""
    qat_steps: int = 0
    """Steps of quantization-aware training before the weights are rounded. As many steps without
    rounding come first: the card compares with them, and they teach."""
    step: str = "best"
    """Which checkpoint: best, latest or a step."""


def main(argv: list[str]) -> None:
    with exit_codes():
        quantize(parse_command(Quantize, argv, "gptjax quantize"))


def quantize(command: Quantize) -> list[dict[str, Any]]:
    """Makes the run `command.out`, prints its card and returns the rows; see `card.measure`.

    Raises UserError, before anything is computed, for a run or a format that does not work.
    """
    devices.require_backend()
    form = _format(command)
    config = run_directory.read_config(command.run)
    if run_directory.read_format(command.run) != FLOAT32:
        raise UserError(f"{command.run} is quantized already; name the run that it was made from")
    run_directory.require_one_model(command.run, "quantize")
    n_steps = command.qat_steps
    require(n_steps >= 0, "qat-steps", n_steps, "0 or more")
    require(n_steps <= MOST_OF_ANY, "qat-steps", n_steps, f"at most {MOST_OF_ANY:,}")
    if n_steps and form.bits == 16:
        raise UserError(f"--qat-steps {n_steps} is for --bits 8 or less; leave it out")
    if not resuming.has_data(command.run):
        raise UserError(f"{command.run} was imported, so it has no data to measure a card on")
    with run_directory.new_run(command.out) as part:
        dataset = data.load(config, init_from.vocabulary(config, command.run), to_train=n_steps > 0)
        resuming.check_same_data(command.run, dataset)
        dtype = devices.compute_dtype(config.train)
        trained = models.build(config.model, dataset.tokenizer, dtype)
        step, params = checkpoints.load_params(command.run, trained, command.step)
        config, params = models.for_use(config, params)
        model = models.build(config.model, dataset.tokenizer, dtype)

        saved = card.name_of(form) + ("+QAT" if n_steps else "")
        params_by_name = {name: quantize_params(params, f) for name, f in card.FORMATS.items()}
        if n_steps:
            plain = fine_tune(model, params, dataset, config, FLOAT32, step, n_steps)
            params_by_name[card.STEPS] = plain
            params = fine_tune(model, params, dataset, config, form, step, n_steps, teacher=plain)
        params_by_name[saved] = params = quantize_params(params, form)
        rows = card.measure(model, params_by_name, dataset, config)
        for row in rows:
            row["step"] = step + (n_steps if row["format"] in (saved, card.STEPS) else 0)
        origin = run_directory.read_environment(command.run)["data"]
        files: dict[str, Any] = {"format.json": dataclasses.asdict(form)}
        files |= resuming.recordings_of(command.run)
        last = step + n_steps
        checkpoints.save_finished(part, config, dataset.tokenizer, params, origin, files, last)
        # The size of an orbax checkpoint varies by some kilobytes from save to save.
        saved_row = next(row for row in rows if row["format"] == saved)
        saved_row["disk_bytes"] = checkpoints.disk_bytes(part)
        write_json(part / "quantization.json", rows)
    print(f"{command.run} step {step}, {models.count(params):,} parameters\n")
    print(card.table(rows, saved))
    print(f"{saved} in {command.out}")
    return rows


def _format(command: Quantize) -> Format:
    group = command.group
    if group is None:
        group = CHUNK if command.bits == 4 else 0
    if command.bits == 16 and (command.group or command.activations):
        raise UserError("--bits 16 has neither --group nor --activations; leave them out")
    try:
        return Format(command.bits, group, command.activations)
    except ValueError as error:
        raise UserError(f"--{error}") from None

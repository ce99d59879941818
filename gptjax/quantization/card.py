"""A quantization card: size, validation loss and decoding speed of a model in several formats."""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from gptjax import evaluation, models
from gptjax.config import Config
from gptjax.data.dataset import Data
from gptjax.data.tokenizer import PairTokenizer, SpeechTokenizer
from gptjax.decoding import beam_search, sampling
from gptjax.decoding.sampling import Sampler
from gptjax.models import EncoderDecoder, Model, SpeechRecognizer
from gptjax.quantization.quant_array import CHUNK, FLOAT32, Format
from gptjax.runs import checkpoints
from gptjax.scale import devices

FORMATS = {
    "float32": FLOAT32,
    "bf16": Format(16),
    "int8": Format(8),
    "int4": Format(4, group=CHUNK),
    "int3": Format(3),
    "int2": Format(2),
    "ternary": Format("ternary"),
    "W8A8": Format(8, activation_bits=8),
}
"""Rows of every card."""
STEPS = "float32+steps"
"""The row of a run that was fine-tuned for as many steps as the quantized one, without rounding."""
BATCH_SIZES = (1, 32)
ROUNDS, SECONDS_PER_ROUND = 5, 0.5
LEGEND = """\
<          the format that is saved; W8A8: 8 bits for weights and for inputs of matrix products;
           +QAT: trained further with rounded weights; +steps: as long, without rounding;
           int3, int2, ternary: of the matrices in blocks, the others are int4
step       training steps of the parameters
bits       per weight, its share of the scales included
on disk    size of the checkpoint, and how many times smaller than float32; in memory: the arrays
val_loss   nats per token of the whole validation split; delta: above that of float32 (+ is worse)
tokens/s   decoded one text at a time, and 32 at a time, and how many times float32's rate"""
"""What the columns of `table` mean."""
SAME_SPEED = 0.95
"""A format is called slower if its rate is below this share of the first row's."""
DECODED_TOKENS = 128
"""Tokens that a text model writes in each round."""
DECODED_SOURCES = 16
"""Sources that a model with an encoder reads in each round at batch size 1."""


def name_of(form: Format) -> str:
    """The name of a format in a card: int8, int4 (groups of 32), int8 g64, ternary, W8A8, bf16."""
    if form.bits == 16:
        return "bf16"
    name = "ternary" if form.bits == "ternary" else f"int{form.bits}"
    if form.activation_bits:
        name = f"W{1.58 if form.bits == 'ternary' else form.bits}A8"
    default_group = CHUNK if form.bits == 4 else 0
    return name if form.group == default_group else f"{name} g{form.group}"


def measure(
    model: Model, params_by_name: dict[str, Any], dataset: Data, config: Config
) -> list[dict[str, Any]]:
    """The rows of a card, one for each named set of parameters, on this device.

    bits: per number, including scales. disk_bytes: files of a checkpoint. memory_bytes: arrays.
    val_loss: nats per token of the whole validation split. delta: val_loss minus the first row's.
    tokens_per_second_1 and _32: greedy decoding at these batch sizes, median of rounds.
    """
    tokens_per_sequence = dataset.tokens_per_sequence(config)
    batch_size = devices.micro_batch_size(config.train, config.model, tokens_per_sequence)
    mean_loss = evaluation.make_evaluate(model)
    rows = []
    for name, params in track(params_by_name.items(), "measuring losses", transient=True):
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
    add_rates(rows, model, params_by_name, dataset, config)
    return rows


def add_rates(
    rows: list[dict[str, Any]],
    model: Model,
    params_by_name: dict[str, Any],
    dataset: Data,
    config: Config,
) -> None:
    """Measures how fast the parameters of each row decode, and writes it into the rows."""
    for n in BATCH_SIZES:
        decode = decoder(model, dataset, config, n)
        rates = decoding_rates(
            {row["format"]: partial(decode, params_by_name[row["format"]]) for row in rows}
        )
        for row in rows:
            row[f"tokens_per_second_{n}"] = round(rates[row["format"]], 1)


def disk_bytes(params: Any) -> int:
    """Bytes of the files of a checkpoint of these parameters."""
    with tempfile.TemporaryDirectory() as folder:
        with closing(checkpoints.Checkpoints(Path(folder) / "checkpoints", keep_latest=1)) as saved:
            saved.save_params(params)
        return checkpoints.disk_bytes(Path(folder))


def decoder(model: Model, dataset: Data | None, config: Config, n: int) -> Callable[[Any], int]:
    """A function of parameters that decodes greedily at batch size n and returns the token count.

    A text model continues a single token and needs no data set. A model with an encoder reads the
    first sources of the validation split.
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
    """Tokens per second of each decoder: the median of ROUNDS.

    The decoders take turns in each round, so that a slow minute of the machine affects all.
    """
    rates: dict[str, list[float]] = {name: [] for name in decoders}
    for decode in decoders.values():
        decode()  # compiles
    for _ in track(range(ROUNDS), "measuring decoding", transient=True):
        for name, decode in decoders.items():
            n_tokens, start, seconds = 0, time.perf_counter(), 0.0
            while not n_tokens or seconds < SECONDS_PER_ROUND:
                n_tokens += decode()
                seconds = time.perf_counter() - start
            rates[name].append(n_tokens / seconds)
    return {name: statistics.median(rates[name]) for name in decoders}


def table(rows: list[dict[str, Any]], saved: str) -> str:
    """A card as text, with a legend. Sizes and rates are also multiples of the first row's.

    rows: with the "step" of each row's parameters. saved: the row of the format that is saved; it
    is marked with <.
    """
    first, losses = rows[0], {row["format"]: row["val_loss"] for row in rows}
    lines = [
        f"{'':15}{'step':>7}{'bits':>6}{'on disk':>18}{'in memory':>18}{'val_loss':>10}"
        f"{'delta':>10}{'tokens/s, batch 1':>20}{'batch 32':>18}"
    ]
    for row in rows:
        name = row["format"] + (" <" if row["format"] == saved else "")
        cells = f"{name:15}{row['step']:7}{row['bits']:6.2f}"
        for name in ("disk_bytes", "memory_bytes"):
            cells += f"{row[name] / 1e6:9.2f} MB {first[name] / row[name]:4.2f}x"
        cells += f"{row['val_loss']:10.4f}{row['delta']:+10.5f}"
        for n, width in zip(BATCH_SIZES, (14, 12), strict=True):
            rate, first_rate = (r[f"tokens_per_second_{n}"] for r in (row, first))
            cells += f"{rate:{width},.0f} {rate / first_rate:4.2f}x"
        lines.append(cells)
    if STEPS in losses:
        lines.append(
            f"{saved} compared with {STEPS}, which trained for as many steps: "
            f"{losses[saved] - losses[STEPS]:+.5f}"
        )
    return "\n".join([*lines, slower(rows), "", LEGEND])


def slower(rows: list[dict[str, Any]]) -> str:
    """A line that lists the formats that decode slower than the first row's."""
    shares = [
        (row["format"], n, row[f"tokens_per_second_{n}"] / rows[0][f"tokens_per_second_{n}"])
        for row in rows
        for n in BATCH_SIZES
    ]
    listed = [
        f"{name} at batch {n} ({share:.2f})" for name, n, share in shares if share < SAME_SPEED
    ]
    margin = f"slower than {rows[0]['format']} by more than {1 - SAME_SPEED:.0%}"
    return f"{margin}: {', '.join(listed) or 'none'}"

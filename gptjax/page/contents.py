"""What a page knows of its run: model, tokenizer, losses, samples, and examples to begin with."""

import base64
import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax import models
from gptjax.config import Config
from gptjax.config_encoders import SpeechConfig
from gptjax.data import dataset as data
from gptjax.data.pairs import PairData
from gptjax.data.speech import SpeechData
from gptjax.data.texts import TextData
from gptjax.decoding.transcription import longest_window
from gptjax.errors import UserError
from gptjax.evaluation import make_evaluate
from gptjax.page.tokens import for_page
from gptjax.page.weights import WeightFormat, pack, pack_difference
from gptjax.quantization.quant_array import FLOAT32, dequantize_params
from gptjax.runs import checkpoints, init_from, resuming, run_directory
from gptjax.runs.metrics import read_metrics
from gptjax.training import Batch

EXAMPLE_TOKENS = 48
"""Length of the text that a page looks at first."""
EXAMPLE_SOURCES = "crocodile", "queue", "phonetics", "lightning", "shampoo", "violin", "mirror"
"""Words of CMUdict that are held out at a val_fraction of 1 % or more: new to the model."""
N_SOURCES = 5
N_CLIPS = 3
MOST_POINTS = 400
"""Points of a loss curve: more than a screen shows."""
LOSS_TOKENS = 2000
"""Tokens of the validation split on which the cost of smaller weights is measured."""


def contents(
    run: Path, step: str, weights: WeightFormat, n_checkpoints: int, most_bytes: float
) -> dict[str, Any]:
    """Everything that a page shows, as a dict for JSON.

    Raises UserError for a folder that is no run or has no checkpoint, a tokenizer that a page does
    not have, and weights that take more than most_bytes.
    """
    config, tok = run_directory.read_config(run), run_directory.read_tokenizer(run)
    run_directory.require_one_model(run, "a page")
    page_tokenizer = for_page(tok)
    model = models.build(config.model, tok)  # float32, whatever it was trained in
    found, params = checkpoints.load_params(run, model, step)
    if run_directory.read_format(run) != FLOAT32:
        params = jax.jit(dequantize_params)(params)
    params = jax.device_get(models.without_training_heads(params))
    _check_size(run, models.count(params), weights, most_bytes)
    examples: dict[str, Any] = {}
    loss: dict[str, Any] = {}
    with ThreadPoolExecutor(1) as pool:
        packing = pool.submit(pack, params, weights)  # compiles beside the evaluation
        try:
            dataset = _dataset(run, config)
        except UserError as error:  # the data is elsewhere: the page goes without
            loss["unknown"] = str(error)
        else:
            examples = _examples(dataset, config)
            batches = list(_some_batches(dataset, config))
            evaluate = make_evaluate(model)
            loss = {"float32": evaluate(params, batches)}
            loss["shown"] = evaluate(packing.result()[1], batches)
            loss["tokens"] = int(sum(batch["loss_weights"].sum() for batch in batches))
    packed, shown = packing.result()
    return {
        "name": run.resolve().name,
        "config": {"type": type(config.model).__name__} | dataclasses.asdict(config.model),
        "hidden_width": getattr(config.model, "hidden_width", None),
        "tokenizer": page_tokenizer,
        "step": found,
        "parameters": models.count(params),
        "run_bits": run_directory.read_format(run).bits,
        "weights": {"format": weights, "loss": loss, **packed},
        "checkpoints": _others(run, model, found, shown, n_checkpoints),
        "metrics": _curve(run),
        "samples": _samples(run),
        **examples,
    }


def _check_size(run: Path, n_parameters: int, weights: WeightFormat, most_bytes: float) -> None:
    """Raises UserError if the weights alone are too large. Base64 adds a third."""
    size = {form: n_parameters * n * 4 // 3 for form, n in BYTES.items()}
    if size[weights] <= most_bytes:
        return
    fits = [form for form in BYTES if size[form] <= most_bytes]
    advice = f"take --weights {fits[0]}, or " if fits else ""
    raise UserError(
        f"{run} has {n_parameters:,} parameters: about {size[weights] / 1e6:,.0f} MB as {weights}, "
        f"more than --max-mb {most_bytes / 1e6:g}; {advice}raise --max-mb"
    )


BYTES: dict[WeightFormat, int] = {"float32": 4, "float16": 2, "int8": 1}


def _others(run: Path, model: Any, found: int, shown: Any, n: int) -> list[dict[str, Any]]:
    """The n other checkpoints that are spread most evenly over the run, as differences."""
    steps = [step for step in checkpoints.committed_steps(run) if step != found]
    if n < len(steps):
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, n).astype(int)] if n else []
    if run_directory.read_format(run) != FLOAT32:
        return []  # a quantized run has one
    made = []
    for step in steps:
        params = models.without_training_heads(checkpoints.load_params(run, model, str(step))[1])
        made.append({"step": step, **pack_difference(params, shown)})
    return made


def _dataset(run: Path, config: Config) -> Any:
    """The data of a run. Raises UserError if there is none, or if it has changed."""
    if not resuming.has_data(run):
        raise UserError(f"{run} was imported, so it has no data")
    dataset = data.load(config, init_from.vocabulary(config, run), to_train=False)
    resuming.check_same_data(run, dataset)
    return dataset


def _some_batches(dataset: Any, config: Config) -> Iterator[Batch]:
    """The first validation sequences, LOSS_TOKENS or more; eight at a time, leaves (1, B, ...)."""
    n_tokens = 0.0
    for group in dataset.validation(config, 8):
        for k in range(len(group["tokens"])):
            batch = {name: leaf[k : k + 1] for name, leaf in group.items()}
            yield batch
            n_tokens += batch["loss_weights"].sum()
            if n_tokens >= LOSS_TOKENS:
                return


def _examples(dataset: TextData | PairData | SpeechData, config: Config) -> dict[str, Any]:
    """A text, sources, or recordings of the validation split."""
    if isinstance(dataset, TextData):
        n = min(EXAMPLE_TOKENS, config.model.block_size)
        # From the start of a paragraph, if one starts soon: the split begins in the middle of one.
        before, gap, _ = dataset.tokenizer.decode(dataset.val[: 4 * n]).partition("\n\n")
        first = len(dataset.tokenizer.encode(before + gap)) if gap else 0
        return {"text": dataset.tokenizer.decode(dataset.val[first : first + n])}
    if isinstance(dataset, PairData):
        sources = [s for s in EXAMPLE_SOURCES if s in dataset.val or s in dataset.test]
        sources += [s for s in itertools.islice(dataset.val, N_SOURCES) if s not in sources]
        return {"sources": sources[:N_SOURCES]}
    assert isinstance(config.model, SpeechConfig)
    longest = longest_window(config.model, dataset.tokenizer)
    found = dataset.val_examples(10 * N_CLIPS, config.model)
    fitting = [example for example in found if len(example.samples_N) <= longest]
    clips = []
    for example in fitting[:N_CLIPS]:
        samples = np.clip(np.round(example.samples_N * 32767), -32768, 32767).astype("<i2")
        clips.append(
            {"text": example.text, "samples": base64.b64encode(samples.tobytes()).decode()}
        )
    return {"clips": clips}


def _curve(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl: every evaluation, and MOST_POINTS of the training steps."""
    rows = read_metrics(run)
    training = [row for row in rows if "train_loss" in row]
    stride = max(1, -(-len(training) // MOST_POINTS))
    kept = {id(row) for row in training[::stride]} | {id(r) for r in rows if "val_loss" in r}
    names = "step", "seconds", "train_loss", "val_loss"
    return [
        {name: round(row[name], 4) for name in names if name in row}
        for row in rows
        if id(row) in kept
    ]


def _samples(run: Path) -> dict[int, str]:
    """The samples that were written at the evaluations of a run."""
    paths = (run / "samples").glob("*.txt")
    paths = [path for path in paths if path.stem.isdecimal() and path.is_file()]
    texts = {int(path.stem): path.read_text("utf-8", errors="replace") for path in paths}
    return {step: texts[step].rstrip("\n")[:2000] for step in sorted(texts)}

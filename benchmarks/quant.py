"""Quantization: the cards of trained runs, and decoding speed at the size of gpt.py and of GPT-2.

    python -m benchmarks.quant card gpt_cpu gpt_cpu_wide g2p_cpu digits_cpu
    python -m benchmarks.quant rates gpt_cpu_wide    # the tokens per second of a card once more
    python -m benchmarks.quant kept gpt_cpu gpt_cpu_wide
    python -m benchmarks.quant decode seed --tag cpu

A card needs a run that `python -m benchmarks.expected NAME` made. Runs on pairs and on speech are
also measured on their test split. Decoding uses random weights, in interleaved rounds within one
process. It is compared with Google's qwix (pip install qwix). The quantized kernels of qwix work
only in a Linear that calls lax.dot_general and casts nothing, so qwix gets PlainLinear.
"""

import argparse
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks import environment
from benchmarks.expected import RUNS
from gptjax import attention, evaluation, gpt, layers, models
from gptjax.commands.evaluate import Evaluate, evaluate
from gptjax.config import GPTConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.config_files import load_file
from gptjax.data import dataset as data
from gptjax.decoding import sampling
from gptjax.decoding.sampling import Sampler
from gptjax.quantization.card import (
    BATCH_SIZES,
    FORMATS,
    STEPS,
    add_rates,
    decoder,
    decoding_rates,
    measure,
)
from gptjax.quantization.fine_tuning import fine_tune
from gptjax.quantization.quant_array import FLOAT32, quantize_params
from gptjax.runs import checkpoints, resuming, run_directory
from gptjax.scale import devices

FOLDER = Path(os.environ.get("OUT", "docs/benchmarks"))
QAT_STEPS = {"gpt_cpu": 1600, "gpt_cpu_wide": 1600, "g2p_cpu": 400, "digits_cpu": 50}
QAT_FORMATS = {
    "gpt_cpu": ("int4", "int3", "int2", "ternary"),
    "gpt_cpu_wide": ("int4", "ternary"),
}
"""Formats that are trained for a card; int4 alone for other runs."""
SIZES = {
    "seed": (load_file(Path("configs/gpt.py")).model, 65),
    "gpt2": (load_file(Path("configs/gpt2_124m.py")).model, 50_257),
    "tiny": (GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32), 65),
}
"""What decoding is measured with: model and vocabulary size."""


def card(name: str) -> dict[str, Any]:
    """The card of a trained run with quantization-aware training, and the test errors of int8.

    As `gptjax quantize` makes it, with several formats trained from one teacher.
    """
    run, made = RUNS / name, RUNS.parent / "quant"
    shutil.rmtree(made / name, ignore_errors=True)
    config, dataset, model, step, params = loaded(name)
    steps = QAT_STEPS.get(name, 10)
    tuned = functools.partial(fine_tune, model, params, dataset, config)
    params_by_name = {form: quantize_params(params, f) for form, f in FORMATS.items()}
    plain = params_by_name[STEPS] = tuned(FLOAT32, step, steps)
    for form in QAT_FORMATS.get(name, ("int4",)):
        of_form = tuned(FORMATS[form], step, steps, plain)
        params_by_name[f"{form}+QAT"] = quantize_params(of_form, FORMATS[form])
    record = {
        "run": name,
        "parameters": models.count(params),
        "qat_steps": steps,
        "rows": measure(model, params_by_name, dataset, config),
        "environment": environment.describe(),
    }
    if isinstance(config.model, EncoderDecoderConfig | SpeechConfig):
        sides = {"float32": run}
        origin = run_directory.read_environment(run)["data"]
        for side, form in (("int8", "int8"), ("int4+QAT", "int4")):
            sides[side] = made / name / form
            files: dict[str, Any] = {"format.json": dataclasses.asdict(FORMATS[form])}
            files |= resuming.recordings_of(run)
            with run_directory.new_run(sides[side]) as part:
                checkpoints.save_finished(
                    part, config, dataset.tokenizer, params_by_name[side], origin, files
                )
        record["test"] = {side: evaluate(Evaluate(folder)) for side, folder in sides.items()}
    return record


def rates(name: str) -> dict[str, Any]:
    """A card with its tokens per second measured again, for a card that was made on a busy machine.

    Trained or not, the parameters of a format decode as fast.
    """
    record = json.loads((FOLDER / f"quant-card-{name}.json").read_text())
    config, dataset, model, _, params = loaded(name)
    of_row = {row["format"]: row["format"].split("+")[0] for row in record["rows"]}
    params_by_name = {row: quantize_params(params, FORMATS[form]) for row, form in of_row.items()}
    add_rates(record["rows"], model, params_by_name, dataset, config)
    return record


def loaded(name: str) -> tuple[Any, Any, Any, int, Any]:
    """(config, data set, model, step, parameters) of a trained run."""
    config = run_directory.read_config(RUNS / name)
    dataset = data.load(config)
    dtype = devices.compute_dtype(config.train)
    trained = models.build(config.model, dataset.tokenizer, dtype)
    step, params = checkpoints.load_params(RUNS / name, trained)
    config, params = models.for_use(config, params)
    return config, dataset, models.build(config.model, dataset.tokenizer, dtype), step, params


KEPT: dict[str, Callable[[str, Any], bool]] = {
    "nothing": lambda path, p: False,
    "vectors": lambda path, p: p.ndim < 2,
    "embeddings": lambda path, p: "table" in path,
    "output head": lambda path, p: "head" in path,
}
"""Parameters that stay float32 while all the others are rounded."""


def kept(name: str) -> dict[str, Any]:
    """Validation loss and size if one kind of parameter stays float32."""
    config, dataset, model, _, params = loaded(name)
    batch_size = devices.micro_batch_size(
        config.train, config.model, dataset.tokens_per_sequence(config)
    )
    mean_loss = evaluation.make_evaluate(model)

    def loss(params: Any) -> float:
        return mean_loss(params, dataset.validation(config, batch_size))

    float32_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    float32_loss = loss(params)
    rows = []
    for form in ("int8", "int4"):
        for kind, is_kept in KEPT.items():

            def choose(path: Any, p: Array, q: Any, is_kept: Any = is_kept) -> Any:
                return p if is_kept(jax.tree_util.keystr(path), p) else q

            rounded = quantize_params(params, FORMATS[form])
            mixed = jax.tree_util.tree_map_with_path(choose, params, rounded)
            n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(mixed))
            row = {"format": form, "kept": kind, "smaller": round(float32_bytes / n_bytes, 3)}
            rows.append({**row, "delta": loss(mixed) - float32_loss})
    return {"run": name, "rows": rows, "environment": environment.describe()}


class PlainLinear(nn.Module):
    """layers.Linear in a form that qwix can intercept."""

    features: int
    bias: bool = True
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.features))
        y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())))
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        return y.reshape(*x.shape[:-1], self.features)


@contextmanager
def plain_linear() -> Iterator[None]:
    with (
        mock.patch.object(layers, "Linear", PlainLinear),
        mock.patch.object(attention, "Linear", PlainLinear),
        mock.patch.object(gpt, "Linear", PlainLinear),
    ):
        yield


def with_qwix(model: Any, params: Any) -> tuple[Any, Any]:
    """(model, parameters) with the kernels of blocks as int8 by qwix, which leaves embeddings."""
    import qwix

    rule = qwix.QuantizationRule(module_path=".*block_.*", weight_qtype=jnp.int8)
    quantized = qwix.quantize_model(model, qwix.PtqProvider([rule]))
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(quantized.init, jax.random.key(0), tokens)["params"]
    return quantized, qwix.quantize_params(params, shapes)


def decode(size: str) -> dict[str, Any]:
    """Tokens per second, bytes of parameters, and bytes of temporary memory while decoding."""
    config = load_file(Path("configs/gpt.py"))
    model_config, vocab_size = SIZES[size]
    model = models.build(model_config, vocab_size, devices.compute_dtype(config.train))
    params = models.init(model, config.seed)
    sides = {name: (model, quantize_params(params, form)) for name, form in FORMATS.items()}
    if devices.on_cpu():  # on a GPU its kernels would be float32
        with plain_linear():
            sides["qwix int8"] = with_qwix(model, params)
    rows: list[dict[str, Any]] = [
        {"format": name, "memory_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(p))}
        for name, (_, p) in sides.items()
    ]
    for n in BATCH_SIZES:
        decoders: dict[str, Callable[[], int]] = {}
        for name, (side, p) in sides.items():
            decoders[name] = functools.partial(decoder(side, None, config, n), p)

        def prepare(row: dict[str, Any], n: int = n, decoders: Any = decoders) -> None:
            side, p = sides[row["format"]]
            row[f"work_bytes_{n}"] = work_bytes(side, p, n)
            decoders[row["format"]]()  # compiles

        with ThreadPoolExecutor() as pool:  # a GPU's programs take long to compile
            list(pool.map(prepare, rows[: len(FORMATS)]))
        for row in rows[len(FORMATS) :]:
            with plain_linear():  # traced here, with the right Linear
                prepare(row)
        rates = decoding_rates(decoders)
        for row in rows:
            row[f"tokens_per_second_{n}"] = round(rates[row["format"]], 1)
    return {
        "size": size,
        "parameters": models.count(params),
        "rows": rows,
        "environment": environment.describe(),
    }


def work_bytes(model: Any, params: Any, batch_size: int) -> int:
    """Bytes that XLA allocates for decoding, besides parameters and cache."""
    lowered = sampling._decode.lower(
        model,
        Sampler(temperature=0),
        params,
        jnp.zeros(batch_size, jnp.int32),
        model.init_cache(batch_size),
        jnp.int32(16),
        (jax.random.key(0), jnp.int32(0)),
    )
    return int(lowered.compile().memory_analysis().temp_size_in_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("card", "rates", "kept", "decode"))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--tag", default="cpu", help="of decode's JSON: quant-NAME-TAG.json")
    arguments = parser.parse_args()
    measure = {"card": card, "rates": rates, "kept": kept, "decode": decode}[arguments.what]
    for name in arguments.names:
        record = {"command": f"python -m benchmarks.quant {arguments.what} {name}"}
        record |= measure(name)
        tags = {"decode": f"{name}-{arguments.tag}", "kept": f"kept-{name}"}
        path = FOLDER / f"quant-{tags.get(arguments.what, f'card-{name}')}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(path)
        for row in record["rows"]:
            print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()

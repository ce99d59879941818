"""gptjax export: a trained run as files that other programs read. Everything is float32."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import tyro

from gptjax import config_json, models
from gptjax.atomic import write_json, write_text
from gptjax.command_line import parse_command
from gptjax.errors import UserError, exit_codes, import_extra
from gptjax.interop import huggingface
from gptjax.interop.files import write_safetensors
from gptjax.interop.stablehlo import forward_program
from gptjax.quantization.quant_array import FLOAT32, dequantize_params
from gptjax.runs import checkpoints, run_directory
from gptjax.scale import devices
from gptjax.scale.sharding import by_path


@dataclass(frozen=True)
class Export:
    """Write a trained run in a format that other programs read.

    hf: transformers' GPT2LMHeadModel and AutoTokenizer load it. Only for a GPT with learned
    positions, LayerNorm and the activation relu, gelu, gelu_tanh or relu2.

    safetensors: the arrays of any model, named by their paths (block_0.attention.query.kernel), in
    model.safetensors. config.json and tokenizer.json are those of the run.

    stablehlo: a program with the weights in it, which JAX runs without gptjax, on CPUs and CUDA:
        content = open("DIR/forward.stablehlo", "rb").read()
        forward = jax.export.deserialize(bytearray(content))
        logits_BTV = forward.call(tokens_BT)  # any batch, up to the block size

    A model with an encoder takes (tokens, source, source_mask).

    A quantized run is exported with the float32 weights that its integers stand for. Activations
    that it rounds are not rounded.

    examples:
        gptjax export runs/gpt2 --to hf --out exports/gpt2
        gptjax export runs/gpt_cpu --to safetensors --out exports/arrays
        gptjax export runs/gpt_cpu --to stablehlo --out exports/program
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    to: Literal["hf", "safetensors", "stablehlo"]
    """hf: a GPT2LMHeadModel. safetensors: named arrays. stablehlo: a program, tokens to logits."""
    out: Path
    """Folder to make."""
    step: str = "best"
    """Which checkpoint: best, latest or a step."""


def main(argv: list[str]) -> None:
    with exit_codes():
        export(parse_command(Export, argv, "gptjax export"))


def export(command: Export) -> None:
    """Makes the folder, whole or not at all. Raises UserError for a run without such a form."""
    devices.require_backend()
    run, out = command.run, command.out
    config, tok = run_directory.read_config(run), run_directory.read_tokenizer(run)
    form = run_directory.read_format(run)
    run_directory.require_one_model(run, "export")
    if command.to == "hf" and (found := huggingface.obstacles(config.model)):
        raise UserError(
            f"{run} cannot be a GPT-2, which lacks {', '.join(found)}; export it --to safetensors "
            "or stablehlo"
        )
    package = "flatbuffers" if command.to == "stablehlo" else "safetensors"
    import_extra(package, f"--to {command.to} needs")
    with run_directory.new_run(out) as folder:
        model = models.build(config.model, tok)
        step, params = checkpoints.load_params(run, model, command.step)
        if form != FLOAT32:
            params = jax.jit(dequantize_params)(params)
            print(f"{run} is quantized: its weights are written as float32", file=sys.stderr)
            if form.activation_bits:
                print("activations, which the run rounds to int8, are not rounded", file=sys.stderr)
        if command.to == "hf":
            huggingface.write(folder, config.model, tok, params)
            advice = f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
        else:
            if command.to == "safetensors":
                write_safetensors(folder / "model.safetensors", by_path(params))
                advice = f"safetensors.numpy.load_file({str(out / 'model.safetensors')!r})"
            else:
                program = forward_program(model, params).serialize()
                (folder / "forward.stablehlo").write_bytes(program)
                advice = "jax.export.deserialize, as --help shows"
            write_json(folder / "tokenizer.json", tok.to_dict(), indent=None)
            write_text(folder / "config.json", config_json.to_json(config))
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"step {step} of {run} in {out}, {size / 1e6:,.1f} MB; load it with {advice}")

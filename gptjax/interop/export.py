"""Takes a trained run elsewhere: to Hugging Face, as safetensors, or as a StableHLO program.

    python -m gptjax.interop.export RUN --to hf --out DIR

hf: what transformers' GPT2LMHeadModel and AutoTokenizer load; of a GPT with learned positions,
LayerNorm and one of the activations relu, gelu, gelu_tanh, relu2. Other options have no such form.

safetensors: the arrays of any model under their paths (block_0.attention.query.kernel) in
model.safetensors, next to config.json and tokenizer.json as they stand in the run.

stablehlo: forward.stablehlo, a program with the weights in it, for CPUs and CUDA, which jax alone
can run:

    forward = jax.export.deserialize(bytearray(open("DIR/forward.stablehlo", "rb").read()))
    logits_BTV = forward.call(tokens_BT)     # any batch, any length up to the block size

A model with an encoder takes (tokens, source, source_mask). Everything is float32; the weights of
a quantized run are those that its integers stand for, and what W8A8 rounds is not rounded.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import flatten_dict

from gptjax import config_json, models
from gptjax.atomic import write_json, write_text
from gptjax.command_line import parse_command
from gptjax.config import Config, GPTConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.data.tokenizer import PairTokenizer, SpeechTokenizer, Tokenizer
from gptjax.errors import UserError, exit_codes, import_extra
from gptjax.interop import huggingface
from gptjax.models import Model
from gptjax.quantization.quant_array import FLOAT32, dequantize_params
from gptjax.runs import checkpoints, run_directory
from gptjax.scale import devices

PLATFORMS = ("cpu", "cuda")
LARGEST_PROGRAM = 2_000_000_000
"""Bytes of weights: what holds the program, a flatbuffer, counts them in 31 bits."""


@dataclass(frozen=True)
class Export:
    """Write a trained run in a form that other programs read."""

    run: tyro.conf.Positional[Path]
    """Run directory that train.py made."""
    to: Literal["hf", "safetensors", "stablehlo"]
    """hf: a GPT2LMHeadModel; safetensors: named arrays; stablehlo: a program, tokens to logits."""
    out: Path
    """Folder to make."""
    step: str = "best"
    """Which checkpoint: best, latest or a step."""


def export(command: Export) -> None:
    """Makes the folder, whole or not at all. Raises UserError for a run that has no such form."""
    devices.require_backend()
    run, out = command.run, command.out
    config, tok = run_directory.read_config(run), run_directory.read_tokenizer(run)
    form = run_directory.read_format(run)
    if command.to == "hf" and (found := huggingface.obstacles(config.model)):
        raise UserError(
            f"{run} has no form as GPT-2, which lacks {', '.join(found)}; export it --to "
            "safetensors or stablehlo"
        )
    package = "flatbuffers" if command.to == "stablehlo" else "safetensors"
    import_extra(package, f"--to {command.to} needs")
    model = models.build(config.model, tok)
    step, params = checkpoints.load_params(run, model, command.step)
    if form != FLOAT32:
        params = dequantize_params(params)
        print(f"{run} is quantized: its weights are written as float32", file=sys.stderr)
        if form.activation_bits:
            print("what they multiply, rounded here to int8, is not rounded", file=sys.stderr)
    with run_directory.new_run(out) as folder:
        match command.to:
            case "hf":
                write_hf(folder, config.model, tok, params)
                advice = f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
            case "safetensors":
                write_safetensors(folder / "model.safetensors", flatten_dict(params, sep="."))
                describe(folder, config, tok)
                advice = f"safetensors.numpy.load_file({str(out / 'model.safetensors')!r})"
            case "stablehlo":
                program = forward_program(model, params).serialize()
                (folder / "forward.stablehlo").write_bytes(program)
                describe(folder, config, tok)
                advice = "jax.export.deserialize, as --help shows"
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"step {step} of {run} in {out}, {size / 1e6:,.1f} MB; load it with {advice}")


def describe(folder: Path, config: Config, tok: Tokenizer) -> None:
    """Writes config.json and tokenizer.json as a run has them."""
    write_json(folder / "tokenizer.json", tok.to_dict(), indent=None)
    write_text(folder / "config.json", config_json.to_json(config))


def write_safetensors(path: Path, arrays: dict[str, Any]) -> None:
    """Arrays by name, with the mark that transformers asks for."""
    numpy = import_extra("safetensors.numpy", "--to hf and --to safetensors need")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    path.write_bytes(numpy.save(contiguous, {"format": "pt"}))


def write_hf(folder: Path, model: Any, tok: Tokenizer, params: Any) -> None:
    """Writes the files that transformers loads. Raises UserError for a head with a bias."""
    assert not isinstance(tok, PairTokenizer | SpeechTokenizer)
    files, end = huggingface.tokenizer_files(tok, model.block_size)
    ids = {"bos_token_id": tok.start, "eos_token_id": end}
    files["config.json"] = huggingface.gpt2_config(model, tok.vocab_size, tok.start, end)
    files["generation_config.json"] = {"_from_model_config": True, **ids}
    write_safetensors(folder / "model.safetensors", huggingface.to_gpt2(model, params))
    for name, content in files.items():
        write_json(folder / name, content)


def forward_program(model: Model, params: Any) -> jax.export.Exported:
    """logits (B, T, V) of tokens (B, T), B and T open, with the parameters in the program.

    With an encoder also of a source (B, S), or of frames (B, S, M), and of source_mask (B, S).
    Raises UserError for parameters too large for that.
    """
    n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if n_bytes > LARGEST_PROGRAM:
        raise UserError(
            f"a program holds {LARGEST_PROGRAM / 1e9:.0f} GB, but the weights have "
            f"{n_bytes / 1e9:.1f} GB; export --to safetensors"
        )

    def forward(tokens_BT: jax.Array, *source: jax.Array) -> jax.Array:
        inputs = dict(zip(("source", "source_mask"), source, strict=False))
        return model.apply({"params": params}, tokens_BT, **inputs)[0]

    config = model.config
    limits = [f"t <= {config.block_size}"]
    match config:
        case SpeechConfig():  # the encoder's second convolution halves the frames
            limits.append(f"s <= {2 * config.source_block_size}")
        case EncoderDecoderConfig():
            limits.append(f"s <= {config.source_block_size}")
        case _:
            limits = limits if isinstance(config, GPTConfig) else []
    batch, target, source = jax.export.symbolic_shape("b, t, s", constraints=limits)
    inputs = [jax.ShapeDtypeStruct((batch, target), jnp.int32)]
    if isinstance(config, SpeechConfig | EncoderDecoderConfig):
        mels = (config.n_mels,) if isinstance(config, SpeechConfig) else ()
        dtype = jnp.float32 if mels else jnp.int32
        inputs.append(jax.ShapeDtypeStruct((batch, source, *mels), dtype))
        inputs.append(jax.ShapeDtypeStruct((batch, source), jnp.bool_))
    return jax.export.export(jax.jit(forward), platforms=PLATFORMS)(*inputs)


def main(argv: list[str]) -> None:
    with exit_codes():
        if {"-h", "--help"} & set(argv):
            print(__doc__)
        export(parse_command(Export, argv, "python -m gptjax.interop.export"))


if __name__ == "__main__":
    main(sys.argv[1:])

"""GPT-2 (Radford et al. 2019), or any model of its architecture, from Hugging Face's files."""

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax import config_checks, models
from gptjax.config import Config, GPTConfig, TextDataConfig
from gptjax.data.tokenizer import BPETokenizer
from gptjax.errors import UserError, import_extra
from gptjax.interop import huggingface
from gptjax.interop.files import NEEDS, Tensors, TheirConfig, read_json
from gptjax.runs import checkpoints, run_directory

ACTIVATIONS: dict[str, Any] = {theirs: ours for ours, theirs in huggingface.ACTIVATIONS.items()}
ACTIVATIONS["gelu_pytorch_tanh"] = "gelu_tanh"
# Older files keep attention's mask among the tensors.
NO_PARAMETER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


@dataclass(frozen=True)
class GPT2:
    """Turn a GPT-2 checkpoint of Hugging Face into a run."""

    path: tyro.conf.Positional[Path]
    """Folder with config.json, model.safetensors and tokenizer.json, or vocab.json and
    merges.txt."""
    out: Path
    """Run directory to make."""


def gpt2_config(theirs: TheirConfig) -> tuple[GPTConfig, int]:
    """(configuration, vocabulary size) of GPT-2's config.json.

    Raises UserError for what our GPT cannot be, naming the value.
    """
    theirs.require("model_type", "gpt2")
    width = theirs.number("n_embd")
    if theirs.get("n_inner", None) is not None:
        theirs.require("n_inner", 4 * width)
    theirs.require("layer_norm_epsilon", 1e-5, 1e-5)
    theirs.require("scale_attn_weights", True, True)
    theirs.require("scale_attn_by_inverse_layer_idx", False, False)
    theirs.require("add_cross_attention", False, False)
    activation = theirs.one_of("activation_function", tuple(ACTIVATIONS), "gelu_new")
    tied = theirs.one_of("tie_word_embeddings", (True, False), True)
    dropout = theirs.get("resid_pdrop", 0.1)
    if not isinstance(dropout, float | int) or not 0 <= dropout < 1:
        raise UserError(f"{theirs.path}: resid_pdrop is {dropout!r}, but must be in [0, 1)")
    config = GPTConfig(
        n_layer=theirs.number("n_layer"),
        n_head=theirs.number("n_head"),
        n_embd=width,
        block_size=theirs.number("n_positions"),
        dropout=float(dropout),
        position="learned",
        norm="layernorm",
        activation=ACTIVATIONS[activation],
        bias=True,
        attention_bias=True,
        tie_embeddings=tied,
    )
    return config, theirs.number("vocab_size")


def gpt2_params(tensors: Tensors, config: GPTConfig, shapes: Any) -> Any:
    """The parameters, each of GPT-2's tensors used once; `shapes` is the model's own pytree.

    An output head that is not tied has no bias there, so ours is zero. Raises UserError for
    tensors that are missing, unknown or of another shape, and for a tied head that differs.
    """
    leaves: dict[str, Any] = flatten_dict(shapes, sep=".")
    ours = {path: leaf.shape for path, leaf in leaves.items()}
    names = huggingface.names(config)
    # A GPT2Model has no head, and its tensors no prefix.
    prefix = "transformer." if any(n.startswith("transformer.") for n in tensors.shapes) else ""

    def theirs(name: str) -> str:
        return name if name == huggingface.HEAD else prefix + name

    tensors.drop(lambda name: bool(NO_PARAMETER.fullmatch(name.removeprefix(prefix))))
    expected = {}
    for name, paths in names.items():
        *rows, _ = ours[paths[0]]
        shape = (*rows, sum(ours[path][-1] for path in paths))
        expected[theirs(name)] = shape[::-1] if name == huggingface.HEAD else shape
    head, embedding = huggingface.HEAD, theirs("wte.weight")
    written_out = config.tie_embeddings and head in tensors.shapes
    if written_out:
        expected[head] = expected[embedding]
    tensors.check_names(expected)

    flat: dict[str, np.ndarray] = {}
    for name, paths in names.items():
        tensor = tensors.take(theirs(name))
        tensor = tensor.T if name == head else tensor
        flat |= zip(paths, np.split(tensor, len(paths), axis=-1), strict=True)
    if written_out and not np.array_equal(tensors.take(head), flat["token_embedding.table"]):
        raise UserError(f"{tensors.files[0]}: {head} is not {embedding}, but config.json ties them")
    if not config.tie_embeddings:
        flat["head.bias"] = np.zeros(ours["head.bias"], np.float32)
    return unflatten_dict({path: np.ascontiguousarray(flat[path]) for path in ours}, sep=".")


def gpt2_tokenizer(folder: Path, theirs: TheirConfig, vocab_size: int) -> BPETokenizer:
    """The vocabulary of tokenizer.json, or of vocab.json and merges.txt; any kind is welcome.

    Raises UserError when neither is there, is a tokenizer, or fits the model.
    """
    tokenizers = import_extra("tokenizers", NEEDS)
    path, vocab, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if path.is_file():
            text = json.dumps(read_json(path))
        elif vocab.is_file() and merges.is_file():
            path = vocab
            made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
            made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = tokenizers.decoders.ByteLevel()
            if made.token_to_id("<|endoftext|>") is not None:
                made.add_special_tokens(["<|endoftext|>"])
            text = made.to_str()
        else:
            raise UserError(
                f"{folder} has no tokenizer.json, and not both vocab.json and merges.txt; name a "
                "folder that has"
            )
        made = tokenizers.Tokenizer.from_str(text)
    except UserError:
        raise
    except Exception as error:  # the package raises nothing more specific
        raise UserError(f"{path} is no tokenizer ({error}); fetch it again") from None
    largest = max(made.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= largest < vocab_size:
        raise UserError(
            f"{path} has {largest + 1} tokens, but config.json {vocab_size}; they belong to "
            "different models"
        )
    start = theirs.get("bos_token_id", None)
    if not isinstance(start, int) or not 0 <= start <= largest:
        # As a byte-level vocabulary and one of characters call the line break.
        found = map(made.token_to_id, ("<|endoftext|>", "Ċ", "\n"))
        start = next((i for i in found if i is not None), 0)
    return BPETokenizer(text, vocab_size, start)


def import_gpt2(command: GPT2) -> None:
    """Makes the run, whole or not at all. Raises UserError for what cannot be imported."""
    folder, out = command.path, command.out
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name one with config.json and model.safetensors")
    with ExitStack() as stack:
        part = stack.enter_context(run_directory.new_run(out))
        theirs = TheirConfig(folder / "config.json")
        model_config, vocab_size = gpt2_config(theirs)
        config = Config(model=model_config, data=TextDataConfig(tokenizer="bpe"))
        config_checks.check(config)
        tensors = Tensors(folder, stack)
        tok = gpt2_tokenizer(folder, theirs, vocab_size)
        model = models.build(model_config, tok)
        shapes = jax.eval_shape(lambda: models.init(model, seed=0))
        params = gpt2_params(tensors, model_config, shapes)
        origin = f"no data: weights imported from {folder.resolve()}"
        checkpoints.save_finished(
            part, config, tok, params, {"source": origin, "sha256": tensors.sha256()}
        )
    print(f"{models.count(params):,} parameters in {out}; try: python sample.py {out} --prompt ...")

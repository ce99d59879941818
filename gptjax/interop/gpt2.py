"""Reads GPT-2 (Radford et al. 2019), or a model of its architecture, from Hugging Face's files."""

import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from flax.traverse_util import unflatten_dict

from gptjax import config_checks, models
from gptjax.config import Config, GPTConfig, TextDataConfig
from gptjax.data.tokenizer import BPETokenizer
from gptjax.errors import UserError, import_extra
from gptjax.interop import huggingface, special_tokens
from gptjax.interop.files import NEEDS, Imported, Tensors, TheirConfig, read_json
from gptjax.scale.sharding import by_path

ACTIVATIONS: dict[str, Any] = {theirs: ours for ours, theirs in huggingface.ACTIVATIONS.items()}
ACTIVATIONS["gelu_pytorch_tanh"] = "gelu_tanh"
# Tensors that are no parameters: older files hold the masks of attention.
NO_PARAMETER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


def gpt2_config(theirs: TheirConfig) -> tuple[GPTConfig, int]:
    """(configuration, vocabulary size) of GPT-2's config.json.

    Raises UserError, naming the value, for an architecture that our GPT does not have.
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
    """The parameters, in the tree of `shapes`. Each of GPT-2's tensors is used once.

    GPT-2's output head has no bias, so the bias of an untied head is zero. Raises UserError for
    tensors that are missing, unknown or of another shape, and for a tied head that differs from the
    embedding.
    """
    ours = {path: leaf.shape for path, leaf in by_path(shapes).items()}
    names = huggingface.names(config)
    # The tensors of a GPT2Model, which has no head, have no prefix.
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
    if written_out:
        tensors.take_copy(head, embedding, flat["token_embedding.table"])
    if not config.tie_embeddings:
        flat["head.bias"] = np.zeros(ours["head.bias"], np.float32)
    return unflatten_dict({path: np.ascontiguousarray(flat[path]) for path in ours}, sep=".")


def gpt2_tokenizer(folder: Path, theirs: TheirConfig, vocab_size: int) -> BPETokenizer:
    """The tokenizer of tokenizer.json, or else of vocab.json and merges.txt.

    Raises UserError if the files are missing or broken, or have more tokens than the model.
    """
    tokenizers = import_extra("tokenizers", NEEDS)
    path, vocab, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    is_old = not path.is_file()
    if is_old and not (vocab.is_file() and merges.is_file()):
        missing = "no tokenizer.json, and not both vocab.json and merges.txt"
        raise UserError(f"{folder} has {missing}; name a folder that has them")
    try:
        if is_old:
            path = vocab
            made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
            made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = tokenizers.decoders.ByteLevel()
            if made.token_to_id("<|endoftext|>") is not None:
                made.add_special_tokens(["<|endoftext|>"])
        else:
            made = tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:
        # The package raises nothing more specific than Exception, and its panics are none.
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UserError(f"{path} is no tokenizer ({error}); fetch it again") from None
    special_tokens.add_listed(made, folder)
    largest = max(made.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= largest < vocab_size:
        raise UserError(
            f"{path} and the files beside it have {largest + 1} tokens, but config.json "
            f"{vocab_size}; they belong to different models"
        )
    start = theirs.get("bos_token_id", None)
    if not isinstance(start, int) or not 0 <= start <= largest:
        # The line break is Ċ in a byte-level vocabulary, and \n in one of characters.
        found = map(made.token_to_id, ("<|endoftext|>", "Ċ", "\n"))
        start = next((i for i in found if i is not None), 0)
    options = folder / "generation_config.json"  # what `generate` obeys there
    generation: _Generation = read_json(options, _Generation) if options.is_file() else {}
    end = generation.get("eos_token_id", theirs.get("eos_token_id", None))
    ends = end if isinstance(end, list) else [end]
    ends = [i for i in ends if i is not None]
    known = [i for i in ends if isinstance(i, int) and 0 <= i <= largest]
    for unknown in (i for i in ends if i not in known):
        print(
            f"warning: {folder}: eos_token_id {unknown!r} is none of the {largest + 1} tokens, so "
            "generation will not stop there",
            file=sys.stderr,
        )
    return BPETokenizer(made.to_str(), vocab_size, start, known or None)


class _Generation(TypedDict):
    """The form of generation_config.json, as far as it is read."""

    eos_token_id: NotRequired[int | list[int] | None]


def read(folder: Path, stack: ExitStack) -> Imported:
    """The model in a folder. Raises UserError for what cannot be imported."""
    theirs = TheirConfig(folder / "config.json")
    model_config, vocab_size = gpt2_config(theirs)
    config = Config(model=model_config, data=TextDataConfig(tokenizer="bpe"))
    config_checks.check(config)
    tensors = Tensors(folder, stack)
    tok = gpt2_tokenizer(folder, theirs, vocab_size)
    model = models.build(model_config, tok)
    params = gpt2_params(tensors, model_config, models.shapes(model))
    return Imported(config, tok, params, tensors.sha256())

"""A GPT as Hugging Face's GPT2LMHeadModel has it, both ways; a tokenizer as its tokenizers does.

What GPT-2 (Radford et al. 2019) can be: learned positions, LayerNorm, an MLP with one of four
activations, an output head without a bias. Its names of tensors stand without the prefix
"transformer."; its matrices lie as ours, (fan in, fan out).
"""

import json
from itertools import pairwise
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from gptjax.config import GPTConfig, ModelConfig
from gptjax.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    TextTokenizer,
    WordTokenizer,
)
from gptjax.errors import UserError, import_extra

ACTIVATIONS = {"relu": "relu", "relu2": "relu2", "gelu": "gelu", "gelu_tanh": "gelu_new"}
"""Our names of activations, and those of transformers."""

HEAD = "lm_head.weight"
"""The one matrix that lies the other way, (V, D)."""

# The parts of a block, and which of ours stand side by side in each.
PARTS = {
    "ln_1": ("attention_norm",),
    "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
    "attn.c_proj": ("attention.output",),
    "ln_2": ("mlp_norm",),
    "mlp.c_fc": ("mlp.hidden",),
    "mlp.c_proj": ("mlp.output",),
}

HEAD_BIAS_ERROR = 1e-5
"""By how much logits may change when the head's bias moves into the last norm's."""


def obstacles(model: ModelConfig) -> list[str]:
    """What of a model GPT-2 has not, as the options of train.py that asked for it."""
    if type(model) is not GPTConfig:
        return [type(model).__name__.removesuffix("Config")]
    asked = {
        "position": model.position != "learned",
        "norm": model.norm != "layernorm",
        "activation": model.activation not in ACTIVATIONS,
        "qk_norm": model.qk_norm,
        "short_conv": model.short_conv > 0,
        "logit_softcap": model.logit_softcap > 0,
    }
    return [
        f"--model.{name} {getattr(model, name)}".replace("_", "-").removesuffix(" True")
        for name, is_asked in asked.items()
        if is_asked
    ]


def names(config: GPTConfig) -> dict[str, tuple[str, ...]]:
    """{"h.0.attn.c_attn.weight": (our paths, side by side along the last axis), ...}."""
    modules = {
        f"h.{i}.{theirs}": tuple(f"block_{i}.{part}" for part in ours)
        for i in range(config.n_layer)
        for theirs, ours in PARTS.items()
    }
    modules["ln_f"] = ("final_norm",)
    found: dict[str, tuple[str, ...]] = {
        "wte.weight": ("token_embedding.table",),
        "wpe.weight": ("position_embedding.table",),
    }
    for module, parts in modules.items():
        weight = "scale" if "norm" in parts[0] else "kernel"
        found[f"{module}.weight"] = tuple(f"{part}.{weight}" for part in parts)
        found[f"{module}.bias"] = tuple(f"{part}.bias" for part in parts)
    if not config.tie_embeddings:
        found[HEAD] = ("head.kernel",)
    return found


def to_gpt2(config: GPTConfig, params: Any) -> dict[str, np.ndarray]:
    """The state_dict of a GPT2LMHeadModel that computes the same; biases we lack are zero.

    Raises UserError where the output head has a bias that nothing of GPT-2 can stand for.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep=".").items()}
    if "head.bias" in flat:
        flat["final_norm.bias"] = absorb(
            flat["head.bias"], flat["head.kernel"], flat["final_norm.bias"]
        )

    def parameter(path: str) -> np.ndarray:
        if path in flat:
            return flat[path]
        module = path.removesuffix("bias")
        weight = flat.get(f"{module}kernel", flat.get(f"{module}scale"))
        assert weight is not None
        return np.zeros(weight.shape[-1:], np.float32)

    tensors = {}
    for name, paths in names(config).items():
        tensor = np.concatenate([parameter(path) for path in paths], axis=-1)
        if name == HEAD:
            tensors[name] = np.ascontiguousarray(tensor.T)
        else:
            tensors[f"transformer.{name}"] = tensor
    return tensors


def absorb(bias_V: np.ndarray, kernel_DV: np.ndarray, norm_bias_D: np.ndarray) -> np.ndarray:
    """The last norm's bias that gives the logits what the head's bias gave them.

    That is a solution of V equations for D numbers, which there is if V <= D (as with characters)
    or if the bias is zero. Raises UserError if there is none.
    """
    kernel_VD = kernel_DV.T.astype(np.float64)
    shift_D = np.linalg.lstsq(kernel_VD, bias_V.astype(np.float64), rcond=None)[0]
    moved_D = (norm_bias_D + shift_D).astype(np.float32)
    error = np.abs(kernel_VD @ (moved_D - norm_bias_D.astype(np.float64)) - bias_V).max()
    if not error <= HEAD_BIAS_ERROR:
        raise UserError(
            "the output head has a bias, which GPT-2's has not, and which its last norm cannot "
            f"stand for with {len(bias_V)} tokens and a width of {len(norm_bias_D)}; train with "
            "--model.tie-embeddings or --model.no-bias, or export --to safetensors or stablehlo"
        )
    return moved_D


def gpt2_config(config: GPTConfig, vocab_size: int, start: int, end: int | None) -> dict[str, Any]:
    """GPT2LMHeadModel's config.json. start, end: tokens that begin and end a text."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": 4 * config.n_embd,
        "activation_function": ACTIVATIONS[config.activation],
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "embd_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": start,
        "eos_token_id": end,
    }


# --- tokenizers


def tokenizer_json(tok: TextTokenizer) -> dict[str, Any]:
    """The tokenizer.json of Hugging Face's tokenizers that encodes and decodes as ours does.

    Characters and words that the vocabulary lacks are refused there, too. The text <|endoftext|>
    is one token there, but text as any other to our GPT2Tokenizer.
    """
    tokenizers = import_extra("tokenizers", "--to hf needs")
    regex, bpe = tokenizers.Regex, tokenizers.models.BPE
    split, byte_level = tokenizers.pre_tokenizers.Split, tokenizers.pre_tokenizers.ByteLevel

    def in_order(tokens: list[str]) -> dict[str, int]:
        return {token: i for i, token in enumerate(tokens)}

    match tok:
        case CharTokenizer():
            # No token is empty, so nothing stands for what is unknown.
            model = tokenizers.models.WordLevel(in_order(list(tok.characters)), unk_token="")
            made = tokenizers.Tokenizer(model)
            made.pre_tokenizer = split(regex(r"[\s\S]"), "isolated")
            made.decoder = tokenizers.decoders.Fuse()
        case WordTokenizer():  # whose decoder puts blanks between words
            model = tokenizers.models.WordLevel(in_order(tok.words), unk_token="")
            made = tokenizers.Tokenizer(model)
            blanks = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
            made.pre_tokenizer = split(regex(f"[{blanks}]+"), "removed")
        case ByteTokenizer():
            made = tokenizers.Tokenizer(bpe(in_order(byte_characters()), []))
            made.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=False)
            made.decoder = tokenizers.decoders.ByteLevel()
        case GPT2Tokenizer():
            made = tokenizers.Tokenizer(bpe(*vocabulary_and_merges(tok.token_bytes())))
            made.pre_tokenizer = byte_level(add_prefix_space=False)
            made.decoder = tokenizers.decoders.ByteLevel()
            made.add_special_tokens(["<|endoftext|>"])
        case BPETokenizer():
            return json.loads(tok.to_dict()["model"])
    return json.loads(made.to_str())


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: GPT-2's choice."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b if b in printable else 256 + others.index(b)) for b in range(256)]


def vocabulary_and_merges(tokens: list[bytes]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE as (ids by token, pairs to merge), from its tokens in their order.

    The pair that makes a token is what is left of its bytes when all earlier merges are made.
    """
    ranks = {token: i for i, token in enumerate(tokens)}
    characters = byte_characters()

    def text(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    merges = []
    for token in tokens:
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [a + b for a, b in pairwise(parts)]
            i = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
            parts[i : i + 2] = [pairs[i]]
        if len(parts) == 2:
            merges.append((text(parts[0]), text(parts[1])))
    return {text(token): i for token, i in ranks.items()}, merges


def tokenizer_files(tok: TextTokenizer, block_size: int) -> tuple[dict[str, Any], int | None]:
    """({file name: JSON} that AutoTokenizer reads, the token that ends a text if one does)."""
    model = tokenizer_json(tok)
    special = {t["id"]: t["content"] for t in model["added_tokens"] if t["special"]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    end = tok.start if tok.start in special else None  # <|endoftext|> is both
    if end is not None:
        config |= {f"{role}_token": special[end] for role in ("bos", "eos", "unk")}
    return {"tokenizer.json": model, "tokenizer_config.json": config}, end

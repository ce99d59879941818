"""Writes a GPT as Hugging Face's GPT2LMHeadModel, and its tokenizer as that of `tokenizers`.

GPT-2 (Radford et al. 2019) has learned positions, LayerNorm, an MLP with one of four activations,
and an output head without a bias. Tensor names here have no prefix "transformer.". Its matrices
have our layout, (fan in, fan out).
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.atomic import write_json
from gptjax.config import GPTConfig, ModelConfig
from gptjax.data import tokenizer
from gptjax.errors import UserError, import_extra
from gptjax.interop.files import write_safetensors
from gptjax.scale.sharding import by_path

ACTIVATIONS = {"relu": "relu", "relu2": "relu2", "gelu": "gelu", "gelu_tanh": "gelu_new"}
"""Our activation: transformers' name for it."""

HEAD = "lm_head.weight"
"""The only matrix with the other layout, (V, D)."""

# GPT-2's parts of a block: ours, which are concatenated there.
PARTS = {
    "ln_1": ("attention_norm",),
    "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
    "attn.c_proj": ("attention.output",),
    "ln_2": ("mlp_norm",),
    "mlp.c_fc": ("mlp.hidden",),
    "mlp.c_proj": ("mlp.output",),
}

HEAD_BIAS_ERROR = 1e-5
"""Largest change of a logit when the head's bias moves into the last norm's."""


def obstacles(model: ModelConfig) -> list[str]:
    """Features of a model that GPT-2 lacks, as the options of `gptjax train` that set them."""
    if type(model) is not GPTConfig:
        return [type(model).__name__.removesuffix("Config")]
    lacking = {
        "position": model.position != "learned",
        "norm": model.norm != "layernorm",
        "activation": model.activation not in ACTIVATIONS,
        "qk_norm": model.qk_norm,
        "short_conv": model.short_conv > 0,
        "logit_softcap": model.logit_softcap > 0,
    }
    return [
        f"--model.{name} {getattr(model, name)}".replace("_", "-").removesuffix(" True")
        for name, is_lacking in lacking.items()
        if is_lacking
    ]


def write(folder: Path, config: Any, tok: tokenizer.Tokenizer, params: Any) -> None:
    """Writes the files that transformers loads; `obstacles` must be empty.

    Raises UserError if the output head has a bias that GPT-2 cannot express.
    """
    assert not isinstance(tok, tokenizer.PairTokenizer | tokenizer.SpeechTokenizer)
    files, end = tokenizer_files(tok, config.block_size)
    ids = {"bos_token_id": tok.start, "eos_token_id": end}
    files["config.json"] = gpt2_config(config, tok.vocab_size, tok.start, end)
    files["generation_config.json"] = {"_from_model_config": True, **ids}
    write_safetensors(folder / "model.safetensors", to_gpt2(config, params))
    for name, content in files.items():
        write_json(folder / name, content)


def names(config: GPTConfig) -> dict[str, tuple[str, ...]]:
    """{"h.0.attn.c_attn.weight": (our paths, concatenated along the last axis), ...}."""
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
    """The state_dict of an equal GPT2LMHeadModel. Biases that our model lacks are zero.

    Raises UserError if the output head has a bias that GPT-2 cannot express.
    """
    flat = {path: np.asarray(leaf) for path, leaf in by_path(params).items()}
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
    """A bias of the last norm that has the same effect on the logits as the head's bias.

    It solves V equations for D unknowns: possible if V <= D (as with characters), or if the head's
    bias is zero. Raises UserError if there is no solution.
    """
    kernel_VD = kernel_DV.T.astype(np.float64)
    shift_D = np.linalg.lstsq(kernel_VD, bias_V.astype(np.float64), rcond=None)[0]
    moved_D = (norm_bias_D + shift_D).astype(np.float32)
    error = np.abs(kernel_VD @ (moved_D - norm_bias_D.astype(np.float64)) - bias_V).max()
    if not error <= HEAD_BIAS_ERROR:
        raise UserError(
            "the output head has a bias, which GPT-2 lacks, and the last norm cannot replace it "
            f"with {len(bias_V)} tokens and a width of {len(norm_bias_D)}; train with "
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
        "attn_pdrop": config.attention_dropout,
        "resid_pdrop": config.dropout,
        "embd_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": start,
        "eos_token_id": end,
    }


# --- tokenizers


def tokenizer_json(tok: tokenizer.TextTokenizer) -> dict[str, Any]:
    """The tokenizer.json of an equal tokenizer of Hugging Face.

    It also refuses characters and words that the vocabulary lacks. One difference: the text
    <|endoftext|> is one token there, but ordinary text for our GPT2Tokenizer.
    """
    tokenizers = import_extra("tokenizers", "--to hf needs")
    regex, bpe = tokenizers.Regex, tokenizers.models.BPE
    split, byte_level = tokenizers.pre_tokenizers.Split, tokenizers.pre_tokenizers.ByteLevel

    def in_order(tokens: list[str]) -> dict[str, int]:
        return {token: i for i, token in enumerate(tokens)}

    match tok:
        case tokenizer.CharTokenizer():
            # No token is empty, so there is no token for the unknown.
            model = tokenizers.models.WordLevel(in_order(list(tok.characters)), unk_token="")
            made = tokenizers.Tokenizer(model)
            made.pre_tokenizer = split(regex(r"[\s\S]"), "isolated")
            made.decoder = tokenizers.decoders.Fuse()
        case tokenizer.WordTokenizer():  # its decoder puts spaces between words
            model = tokenizers.models.WordLevel(in_order(tok.words), unk_token="")
            made = tokenizers.Tokenizer(model)
            spaces = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
            made.pre_tokenizer = split(regex(f"[{spaces}]+"), "removed")
        case tokenizer.ByteTokenizer():
            made = tokenizers.Tokenizer(bpe(in_order(byte_characters()), []))
            made.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=False)
            made.decoder = tokenizers.decoders.ByteLevel()
        case tokenizer.GPT2Tokenizer():
            made = tokenizers.Tokenizer(bpe(*vocabulary_and_merges(tok.token_bytes())))
            made.pre_tokenizer = byte_level(add_prefix_space=False)
            made.decoder = tokenizers.decoders.ByteLevel()
            made.add_special_tokens(["<|endoftext|>"])
        case tokenizer.BPETokenizer():
            return json.loads(tok.to_dict()["model"])
    return json.loads(made.to_str())


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte in a byte-level vocabulary."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b if b in printable else 256 + others.index(b)) for b in range(256)]


def vocabulary_and_merges(tokens: list[bytes]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE as (ids by token, merges), from its tokens in order.

    A token's merge is the pair that remains of its bytes after all earlier merges.
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


def tokenizer_files(
    tok: tokenizer.TextTokenizer, block_size: int
) -> tuple[dict[str, Any], int | None]:
    """({file name: JSON} that AutoTokenizer reads, the token that ends a text or None)."""
    model = tokenizer_json(tok)
    special = {t["id"]: t["content"] for t in model["added_tokens"] if t["special"]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    end = next(iter(tok.ends), None)
    if end in special:
        config |= {f"{role}_token": special[end] for role in ("bos", "eos", "unk")}
    return {"tokenizer.json": model, "tokenizer_config.json": config}, end

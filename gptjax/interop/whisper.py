"""Reads Whisper, OpenAI's speech recognizer (Radford et al. 2022), from Hugging Face's files.

The logits are the same as Hugging Face's. The text may differ from its `generate`, which never
chooses the tokens in suppress_tokens and begin_suppress_tokens of generation_config.json. Beam
search here has no such list.
"""

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from flax.traverse_util import unflatten_dict

from gptjax import config_checks, models
from gptjax.config import Config
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig
from gptjax.data.tokenizer import BPETokenizer, SpeechTokenizer
from gptjax.errors import UserError, import_extra
from gptjax.interop.files import NEEDS, Imported, Tensors, TheirConfig, read_json
from gptjax.scale.sharding import by_path
from gptjax.speech_recognizer import sinusoids

ENGLISH_ONLY = 51_864
"""Vocabulary size of Whisper's English-only checkpoints. They have language tokens, but were not
trained with them."""

# Our names in a parameter's path, and Whisper's.
WHISPER_NAMES = {
    "conv_1": "conv1",
    "conv_2": "conv2",
    "token_embedding": "embed_tokens",
    "position_embedding": "embed_positions",
    "attention_norm": "self_attn_layer_norm",
    "attention": "self_attn",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "cross_attention": "encoder_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "mlp_norm": "final_layer_norm",
    "final_norm": "layer_norm",
    "kernel": "weight",
    "scale": "weight",
    "table": "weight",
}


def whisper_config(path: Path) -> tuple[SpeechConfig, int]:
    """(configuration, vocabulary size) of Whisper's config.json.

    Raises UserError, naming the value, for an architecture that SpeechRecognizer does not have.
    """
    theirs = TheirConfig(path)
    require, number = theirs.require, theirs.number
    require("model_type", "whisper")
    require("activation_function", "gelu", "gelu")
    require("scale_embedding", False, False)
    require("tie_word_embeddings", True, True)
    width, n_head = number("d_model"), number("encoder_attention_heads")
    require("decoder_attention_heads", n_head)
    for side in ("encoder", "decoder"):
        require(f"{side}_ffn_dim", 4 * width)
    config = SpeechConfig(
        n_layer=number("decoder_layers"),
        n_head=n_head,
        n_embd=width,
        block_size=number("max_target_positions"),
        dropout=0.0,
        position="learned",
        norm="layernorm",
        activation="gelu",
        bias=True,
        attention_bias=True,
        tie_embeddings=True,
        n_encoder_layer=number("encoder_layers"),
        n_mels=number("num_mel_bins"),
        source_block_size=number("max_source_positions"),
        pad_source=True,
    )
    return config, number("vocab_size")


def whisper_name(path: str) -> str:
    """Whisper's name for our parameter path, such as "decoder.final_norm.scale"."""
    path = path.replace("mlp.hidden", "fc1").replace("mlp.output", "fc2")
    path = re.sub(r"block_(\d+)", r"layers.\1", path).replace("output", "out_proj")
    return ".".join(["model", *(WHISPER_NAMES.get(part, part) for part in path.split("."))])


def whisper_params(tensors: Tensors, shapes: Any) -> Any:
    """The parameters, in the tree of `shapes`. Each of Whisper's tensors is used once.

    Raises UserError for tensors that are missing, unknown or of another shape, for encoder
    positions that are not sinusoids, and for an output head that differs from the embedding.
    """
    positions, head = "model.encoder.embed_positions.weight", "proj_out.weight"
    embedding = "model.decoder.embed_tokens.weight"
    ours = {path: leaf.shape for path, leaf in by_path(shapes).items()}
    names = {path: whisper_name(path) for path in ours}
    width = shapes["decoder"]["token_embedding"]["table"].shape[1]
    expected = {
        name: whisper_shape(name, ours[path]) for path, name in names.items() if not is_zero(name)
    }
    n_positions = max((1, *tensors.shapes.get(positions, ())[:1]))
    expected[positions] = (n_positions, width)
    if head in tensors.shapes:  # a copy of the embedding
        expected[head] = expected[embedding]
    tensors.check_names(expected)

    rounding = 4e-3 if tensors.is_bfloat16(positions) else 5e-4
    theirs_SD = tensors.take(positions)
    difference = np.abs(theirs_SD - sinusoids(*theirs_SD.shape)).max()
    if not difference <= rounding:
        raise UserError(
            f"{tensors.files[0]}: {positions} is {difference:.2g} away from sinusoids, the only "
            "encoder positions that can be imported"
        )
    flat = {path: np.zeros(shape, np.float32) for path, shape in ours.items()}
    flat |= {path: to_ours(tensors.take(n), n) for path, n in names.items() if not is_zero(n)}
    if head in tensors.shapes:
        tensors.take_copy(head, embedding, flat["decoder.token_embedding.table"])
    return unflatten_dict(flat, sep=".")


def is_zero(name: str) -> bool:
    """Whether Whisper has no such tensor: its attention keys have no bias, so ours is zero."""
    return name.endswith("k_proj.bias")


def whisper_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of Whisper's tensor for a parameter of this shape; the inverse of `to_ours`."""
    if "conv" in name and len(shape) == 2:
        return shape[1], shape[0] // 3, 3
    return shape[::-1] if len(shape) == 2 and "embed_" not in name else shape


def to_ours(tensor: np.ndarray, name: str) -> np.ndarray:
    """A tensor of Whisper in the layout of our parameter."""
    if tensor.ndim == 3:  # a convolution (D, M, 3); ours is (3 M, D), the frames in order
        return tensor.transpose(2, 1, 0).reshape(-1, len(tensor))
    return tensor.T if tensor.ndim == 2 and "embed_" not in name else tensor


class _Tokenizer(TypedDict):
    """The form of tokenizer.json, as far as it is read here."""

    added_tokens: NotRequired[list[dict[str, Any]]]


class _Generation(TypedDict):
    """The form of generation_config.json, as far as it is read."""

    is_multilingual: NotRequired[bool]


def whisper_tokenizer(folder: Path, vocab_size: int, language: str) -> SpeechTokenizer:
    """Whisper's vocabulary, with the start tokens for a transcript without time stamps.

    Raises UserError if tokenizer.json is missing or does not fit the model, and for an unknown
    language.
    """
    import_extra("tokenizers", NEEDS)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path} is missing; make it from the other files of the vocabulary: "
            f"transformers.AutoTokenizer.from_pretrained({str(folder)!r})"
            f".save_pretrained({str(folder)!r})"
        )
    saved = read_json(path, _Tokenizer)
    added = saved.get("added_tokens", [])
    for token in added:  # time stamps, so that decoding leaves them out
        if re.fullmatch(r"<\|.*\|>", str(token.get("content"))):
            token["special"] = True
    try:
        target = BPETokenizer(json.dumps(saved))
    except ValueError as error:
        raise UserError(f"{path} is no tokenizer ({error}); fetch it again") from None
    if target.vocab_size > vocab_size:
        raise UserError(
            f"{path} has {target.vocab_size} tokens, but config.json only {vocab_size}; they "
            "belong to different models"
        )

    def token_id(token: str) -> int:
        i = target.token_id(token)
        if i is None:
            raise UserError(f"{path} has no token {token}, so it is not Whisper's")
        return i

    # English-only checkpoints may have language tokens, but were not trained with them.
    options = folder / "generation_config.json"
    generation: _Generation = read_json(options, _Generation) if options.is_file() else {}
    contents = (str(token.get("content")) for token in added)
    languages = sorted(text[2:-2] for text in contents if re.fullmatch(r"<\|[a-z]{2,3}\|>", text))
    is_multilingual = generation.get("is_multilingual", vocab_size != ENGLISH_ONLY) and bool(
        languages
    )
    start = ["<|startoftranscript|>"]
    if is_multilingual:
        if language not in languages:
            raise UserError(f"--language is {language}, but must be one of {', '.join(languages)}")
        start += [f"<|{language}|>", "<|transcribe|>"]
    elif language != "en":
        raise UserError(f"--language is {language}, but {folder} knows only English; leave it out")
    start_ids = [token_id(token) for token in [*start, "<|notimestamps|>"]]
    return SpeechTokenizer(target, start_ids, token_id("<|endoftext|>"), vocab_size)


def read(folder: Path, stack: ExitStack, language: str) -> Imported:
    """The model in a folder. Raises UserError for what cannot be imported."""
    model_config, vocab_size = whisper_config(folder / "config.json")
    config = Config(model=model_config, data=SpeechDataConfig(tokenizer="bpe"))
    config_checks.check(config)
    tensors = Tensors(folder, stack)
    tok = whisper_tokenizer(folder, vocab_size, language)
    model = models.build(model_config, tok)
    params = whisper_params(tensors, models.shapes(model))
    return Imported(config, tok, params, tensors.sha256())

"""From a configuration to a model, and to its first parameters."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.bigram import Bigram
from gptjax.config import BigramConfig, Config, GPTConfig, ModelConfig
from gptjax.config_encoders import EncoderDecoderConfig, SpeechConfig
from gptjax.encoder_decoder import EncoderDecoder
from gptjax.ensemble import Ensemble
from gptjax.gpt import GPT
from gptjax.scale import devices
from gptjax.speech_recognizer import SpeechRecognizer

Model = Bigram | GPT | EncoderDecoder | SpeechRecognizer | Ensemble


def build(
    config: ModelConfig, vocabulary: Any, dtype: Any = jnp.float32, remat: bool = False
) -> Model:
    """The model that a configuration describes, without parameters.

    vocabulary: the tokenizer or, for a model without an encoder, its number of tokens.
    """
    vocab_size: int = vocabulary if isinstance(vocabulary, int) else vocabulary.vocab_size
    match config:
        case BigramConfig():
            return Bigram(config, vocab_size, dtype)
        case EncoderDecoderConfig():
            assert not isinstance(vocabulary, int)
            return EncoderDecoder(config, vocab_size, vocabulary.source_vocab_size, dtype, remat)
        case SpeechConfig():
            return SpeechRecognizer(config, vocab_size, dtype, remat)
        case GPTConfig():
            return GPT(config, vocab_size, dtype, remat)
    raise TypeError(f"{type(config).__name__} describes no model")


def of_run(config: Config, vocabulary: Any) -> Model:
    """The model that a run trains, in its number type: one, or an ensemble of its members."""
    train = config.train
    model = build(config.model, vocabulary, devices.compute_dtype(train), train.remat)
    return model if train.members == 1 else Ensemble(model, train.members)


def init(model: Model, seed: int) -> Any:
    """Initial parameters, a pure function of the model and the seed.

    Member i of an ensemble starts as a model with the seed + i.
    """
    if isinstance(model, Ensemble):
        members = [init(model.member, (seed + i) % 2**32) for i in range(model.n_members)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    # Computes the parameters alone, one after the other: those of one shape share a program, which
    # compiles sooner than one large program that makes all of them.
    inputs = _example_inputs(model)
    return model.lazy_init(jax.random.key(seed), mutable="params", **inputs)["params"]


def shapes(model: Model) -> Any:
    """The shapes of the parameters."""
    if isinstance(model, Ensemble):
        n = model.n_members
        return jax.tree.map(lambda s: s.update(shape=(n, *s.shape)), shapes(model.member))
    one: Any = model
    return jax.tree.map(lambda s: s, _shapes_of_one(one))  # a tree that the caller may change


@functools.cache  # tracing takes half a second
def _shapes_of_one(model: Any) -> Any:
    initial = functools.partial(model.init, mutable="params")
    return jax.eval_shape(initial, jax.random.key(0), **_example_inputs(model))["params"]


def _example_inputs(model: Any) -> dict[str, Any]:
    """Shapes of inputs that a model can be called with."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    match model:
        case EncoderDecoder():
            return {"tokens_BT": tokens, "source": tokens}
        case SpeechRecognizer():
            sound = jax.ShapeDtypeStruct((1, 2, model.config.n_mels), jnp.float32)
            return {"tokens_BT": tokens, "source": sound}
    return {"tokens_BT": tokens}


def training_temperature(model: Model) -> float:
    """What training divides logits by. A bigram has no such field."""
    return getattr(model.config, "training_temperature", 1.0)


def source_of(batch: dict[str, Any]) -> dict[str, Any]:
    """What a model with an encoder is called with besides tokens; empty for others."""
    return {name: batch[name] for name in ("source", "source_mask") if name in batch}


def without_training_heads(params: Any) -> Any:
    """The parameters without the heads that only training uses, in the decoder too."""
    if not isinstance(params, dict):
        return params
    heads = "ahead_", "frame_head"
    kept = {name: part for name, part in params.items() if not name.startswith(heads)}
    return {name: without_training_heads(part) for name, part in kept.items()}


def for_use(config: Config, params: Any) -> tuple[Config, Any]:
    """A run's configuration and parameters, without the heads that only training uses."""
    none = {"predict_ahead": 0, "predict_frames": False}
    fields: Any = {name: value for name, value in none.items() if hasattr(config.model, name)}
    model = dataclasses.replace(config.model, **fields)
    return dataclasses.replace(config, model=model), without_training_heads(params)


def count(params: Any) -> int:
    """Number of parameters in a pytree of arrays, of shapes, or of quantized arrays."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: hasattr(leaf, "size"))
    return sum(leaf.size for leaf in leaves)

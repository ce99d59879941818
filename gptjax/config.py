"""Every knob of a run, declared once: frozen dataclasses, and their JSON.

A file in configs/ makes one of them, `config = Config(...)`; any field can be overridden on the
command line (`--optim.learning-rate 1e-3`, command_line.py). Names follow nanoGPT where it has one.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptjax.errors import UserError


@dataclass(frozen=True)
class BigramConfig:
    """The seed's first model: one V x V table of next-token logits."""

    block_size: int = 8
    """Context length of a training window, in tokens."""


@dataclass(frozen=True)
class GPTConfig:
    """A decoder-only Transformer. The defaults are the seed's GPT (10.8 M parameters)."""

    n_layer: int = 6
    """Number of blocks."""
    n_head: int = 6
    """Attention heads per block."""
    n_embd: int = 384
    """Width of the residual stream."""
    block_size: int = 256
    """Context length, in tokens."""
    dropout: float = 0.2
    """Share of attention weights and of residual branches zeroed in training, in steps of 1/256."""
    position: Literal["learned", "rotary"] = "learned"
    """A learned vector per position, or rotated queries and keys (RoPE)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, MLP and output head."""
    activation: Literal["relu", "gelu", "gelu_tanh", "relu2", "swiglu"] = "relu"
    """Non-linearity of the MLP; gelu_tanh is GPT-2's approximation, relu2 is ReLU squared, swiglu
    is gated by SiLU."""
    qk_norm: bool = False
    """RMS-normalise queries and keys, per head."""
    short_conv: int = 0
    """Width of the depthwise convolution before attention and MLP; 0 has none."""
    zero_init: bool = False
    """Start the last projection of every residual branch, and the output head, at zero."""
    logit_softcap: float = 0.0
    """Bound the logits smoothly to +-cap by cap * tanh(logits / cap); 0 leaves them alone."""
    bias: bool = True
    """Biases in projections, MLP, norms and output head."""
    attention_bias: bool = False
    """Biases of queries, keys and values."""
    tie_embeddings: bool = False
    """The output head is the token embedding's table (Press & Wolf 2017), without a bias."""


@dataclass(frozen=True)
class EncoderDecoderConfig(GPTConfig):
    """A GPT whose blocks also attend to what an encoder made of a source sequence.

    The GPT's fields describe the decoder, block_size its longest target; the encoder shares its
    width, heads and options.
    """

    n_encoder_layer: int = 6
    """Number of the encoder's blocks."""
    source_block_size: int = 256
    """Longest source, in tokens."""
    share_embeddings: bool = False
    """One vocabulary, and one table of embeddings, for source and target."""


@dataclass(frozen=True)
class SpeechConfig(GPTConfig):
    """A GPT whose blocks also attend to what an encoder made of a sound, laid out as Whisper.

    The GPT's fields describe the decoder, block_size its longest text; the encoder shares its
    width, heads and options. Where the decoder learns positions, the encoder has sinusoidal ones.
    """

    n_encoder_layer: int = 6
    """Number of the encoder's blocks."""
    n_mels: int = 80
    """Bands of the log-mel spectrogram."""
    source_block_size: int = 1500
    """Longest sound, in positions of 20 ms; longer ones are cut in windows of that length."""
    pad_source: bool = False
    """As Whisper has it: follow every sound by silence up to the longest, mask none of it, and
    leave it as loud as it is."""


ModelConfig = BigramConfig | GPTConfig | EncoderDecoderConfig | SpeechConfig
SPEECH = ("fsdd", "librispeech", "espeak")


@dataclass(frozen=True)
class DataConfig:
    """What to train on."""

    name: Literal[
        "tinyshakespeare", "cmudict", "cmudict_stress", "fsdd", "librispeech", "espeak"
    ] = "tinyshakespeare"
    """Data set to fetch when no path is given: a text, words and their pronunciations, or spoken
    digits. librispeech wants a path; espeak speaks the lines of a text (extra: espeak)."""
    path: Path | None = None
    """Your own UTF-8 text file, a folder made by `gptjax prepare`, or pairs: a .tsv
    of lines source, TAB, target (or a .dict, as CMUdict's). For speech a folder laid out as
    LibriSpeech or as the Free Spoken Digit Dataset, or a manifest: a .jsonl of audio and text."""
    tokenizer: Literal["char", "word", "byte", "gpt2", "bpe"] = "char"
    """One token per distinct char or word; byte; gpt2: GPT-2's BPE; bpe: trained on the text. Of
    pairs, the target's."""
    source_tokenizer: Literal["char", "word", "byte", "gpt2", "bpe"] = "char"
    """The same for the sources of pairs."""
    vocab_size: int = 1024
    """Vocabulary size of a trained BPE; the other tokenizers know their own."""
    val_fraction: float = 0.1
    """Share held out for validation: the end of a text; of pairs, some, and as many for test."""
    windows: Literal["random", "epochs"] = "random"
    """Training windows at random places, or side by side and each once before any comes again."""
    synthetic_clips: int = 10_000
    """Of espeak: how many clips to make, once; they are kept in the cache."""
    string_clips: int = 1
    """Of speech: an example is 1 to this many clips of a speaker, drawn anew every time."""
    hold_out: str = ""
    """Of speech: a speaker never trained on, whose clips are the test split."""
    speed_change: float = 0.0
    """Of speech: in training, play up to this share faster or slower."""
    noise: float = 0.0
    """Of speech: in training, the share of examples that white noise is added to."""
    spec_masks: int = 0
    """Of speech: in training, stretches of time, and as many of frequency, that are hidden."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: Muon on the matrices of the blocks, AdamW on everything else."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay after warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to its peak."""
    decay_fraction: float = 1.0
    """Share of the run, at its end, over which linear and cosine schedules decay."""
    final_fraction: float = 0.0
    """Learning rate at the last step, as a share of the peak."""
    beta1: float = 0.9
    """AdamW's decay of the gradient average."""
    beta2: float = 0.999
    """AdamW's decay of the squared-gradient average."""
    weight_decay: float = 0.01
    """Decoupled weight decay of the matrices; vectors (biases, norm gains) have none."""
    grad_clip: float = 0.0
    """Largest global gradient norm; 0 does not clip."""


@dataclass(frozen=True)
class MeshConfig:
    """How devices share the work: data x fsdp x model of them. One size may be -1, what is left.

    Batches are split over data x fsdp, parameters and all that training keeps of them over
    fsdp x model. The layout changes no batch, no initial weight and no dropout mask.
    """

    data: int = -1
    """Groups of devices with whole models that share the batch."""
    fsdp: int = 1
    """Devices that share the batch, and keep a part of every parameter each (fully sharded)."""
    model: int = 1
    """Devices that share every matmul (tensor parallel); best within one machine."""
    coordinator: str = ""
    """HOST:PORT of process 0, of several processes; Slurm, Open MPI and Kubernetes tell it."""
    processes: int = 0
    """How many processes there are; 0: one, or as many as the cluster says."""
    process: int = -1
    """Which of them this is, from 0; -1: as the cluster says."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and how often to look."""

    max_steps: int = 5000
    """Optimizer steps of the whole run."""
    batch_size: int = 64
    """Sequences per optimizer step, over all devices."""
    micro_batch_size: int = 0
    """Sequences per forward-backward pass; gradients accumulate to batch_size. 0: by device."""
    init_from: Path | None = None
    """Start a new run from the parameters of another, whose model and vocabulary it must share: the
    data are read with that run's tokenizer. One that continues goes on from its own."""
    remat: bool = False
    """Keep only what enters each block, and compute its inside again in the backward pass: a third
    more work for far less memory (of a GPU or TPU; XLA's CPU backend frees none)."""
    steps_per_dispatch: int = 50
    """Most steps that run on the device before the host looks again; of pairs it is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and matmuls; weights stay float32. auto: bfloat16 on GPU and TPU."""
    eval_interval: int = 500
    """Steps between evaluations; each writes loss.png, a sample and a checkpoint."""
    eval_batches: int = 200
    """Random batches of val_loss_sampled, the seed's protocol for texts; 0 leaves it out."""
    log_interval: int = 10
    """Steps between lines of metrics.jsonl."""
    keep_checkpoints: int = 2
    """Latest checkpoints to keep, next to the best one."""
    sample_tokens: int = 500
    """Length of the sample written at every evaluation; 0 writes none."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra: tensorboard)."""
    wandb: bool = False
    """Also log to Weights & Biases (extra: wandb)."""


@dataclass(frozen=True)
class Config:
    """One training run."""

    model: ModelConfig = field(default_factory=GPTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 1337
    """Decides initial weights, batches and dropout."""
    run_dir: Path | None = None
    """Where the run lives; default runs/NAME of the config file. A run found there continues."""
    resume: bool = False
    """Refuse to start from scratch: there must be a checkpoint to continue."""


def to_json(config: Config) -> str:
    """The configuration as JSON text; `from_json` inverts it."""

    def encode(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"type": type(value).__name__, **fields}
        return str(value) if isinstance(value, Path) else value

    return json.dumps(encode(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote. Raises UserError when it is not that."""
    models = (BigramConfig, GPTConfig, EncoderDecoderConfig, SpeechConfig)
    classes = (Config, *models, DataConfig, OptimConfig, MeshConfig, TrainConfig)
    by_name = {cls.__name__: cls for cls in classes}

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        cls = by_name[value["type"]]
        hints = typing.get_type_hints(cls)
        fields = {name: decode(v) for name, v in value.items() if name != "type"}
        for name, v in fields.items():
            if hints[name] == Path | None and v is not None:
                fields[name] = Path(v)
        return cls(**fields)

    try:
        config = decode(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"config.json was not written by this version ({error})") from None
    if not isinstance(config, Config):
        raise UserError("config.json was not written by this version (no Config in it)")
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"model.n_layer": 6, ...}: one entry per knob, for comparing two configurations."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat[f"{prefix}{f.name}"] = type(value).__name__
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[f"{prefix}{f.name}"] = value
    return flat

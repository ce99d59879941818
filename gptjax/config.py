"""The settings of a run: frozen dataclasses, every field declared once.

A file in configs/ defines `config = Config(...)`. The command line sets any field, for example
`--optim.learning-rate 1e-3`. Names follow nanoGPT if it has the same option. Fields of models with
an encoder are in config_encoders.py, those of several devices in config_mesh.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from gptjax.config_mesh import MeshConfig


@dataclass(frozen=True)
class ModelConfig:
    """The field that all models share."""

    block_size: int = 256
    """Context length, in tokens."""


@dataclass(frozen=True)
class BigramConfig(ModelConfig):
    """The first model of the original project: one V x V table of next-token logits."""

    block_size: int = 8
    """Length of a training window, in tokens."""


@dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """A decoder-only Transformer. The defaults are the original PyTorch GPT (10.8 M parameters)."""

    n_layer: int = 6
    """Number of blocks."""
    n_head: int = 6
    """Attention heads per block."""
    n_embd: int = 384
    """Width of a position's vector, which is the residual stream."""
    dropout: float = 0.2
    """Share of values that dropout zeroes: of residual branches and attention weights."""
    drop_attention: bool = True
    """Dropout also of attention weights. Without it, a step is faster."""
    position: Literal["learned", "rotary"] = "learned"
    """Position encoding: a learned vector per position, or rotated queries and keys (RoPE)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalization before attention, MLP and output head."""
    activation: Literal["relu", "gelu", "gelu_tanh", "relu2", "swiglu"] = "relu"
    """Non-linearity of the MLP. gelu_tanh: GPT-2's. relu2: squared ReLU. swiglu: a SiLU gate."""
    qk_norm: bool = False
    """RMS-normalize queries and keys, per head."""
    short_conv: int = 0
    """Width of a convolution over positions, per channel, before attention and MLP. 0: none."""
    zero_init: bool = False
    """Initialize the output projection of every residual branch, and the output head, to zero."""
    logit_softcap: float = 0.0
    """Limit logits to +-cap by cap * tanh(logits / cap). 0: no limit."""
    training_temperature: float = 1.0
    """Training divides its logits by this. Below 1: the model is less sure of itself afterwards."""
    bias: bool = True
    """Biases in projections, MLP, norms and output head."""
    attention_bias: bool = False
    """Biases of queries, keys and values."""
    predict_ahead: int = 0
    """Extra output heads in training. The first predicts the token after the next. 0: none."""
    tie_embeddings: bool = False
    """Use the token embedding as the output head (Press & Wolf 2017), without a bias."""

    @property
    def attention_dropout(self) -> float:
        return self.dropout if self.drop_attention else 0.0

    @property
    def hidden_width(self) -> int:
        """Hidden width of the MLP: 4 D. With a gate 8/3 D, for the same number of parameters."""
        if self.activation == "swiglu":
            return 8 * max(1, round(self.n_embd / 3))
        return 4 * self.n_embd

    @classmethod
    def modern(cls, **fields: Any) -> Self:
        """The architecture of docs/recipe.md. Your arguments replace its values."""
        preset = {
            "dropout": 0.0,
            "position": "rotary",
            "norm": "rmsnorm",
            "activation": "relu2",
            "qk_norm": True,
            "short_conv": 3,
            "zero_init": True,
            "logit_softcap": 15.0,
            "bias": False,
        }
        return cls(**(preset | fields))


@dataclass(frozen=True)
class DataConfig:
    """The fields that all kinds of data share."""

    path: Path | None = None
    """Your own data. Texts: a file (also .gz, .zip, .jsonl, .csv, .parquet), a folder of those, a
    folder of `gptjax prepare`, or of Hugging Face. Pairs: a .tsv. Speech: a folder or a .jsonl."""
    tokenizer: Literal["char", "word", "byte", "gpt2", "bpe"] = "char"
    """gpt2: GPT-2's BPE. bpe: a BPE trained on your text. For pairs: the targets' tokenizer."""
    vocab_size: int = 1024
    """Vocabulary size of `bpe`. Other tokenizers ignore it."""
    val_fraction: float = 0.1
    """Share held out for validation: the end of a text, or some of the pairs or recordings."""


@dataclass(frozen=True)
class TextDataConfig(DataConfig):
    """A text. The default is tiny-Shakespeare, which is fetched on first use."""

    field: str = ""
    """Column with the text of a .jsonl, .csv, .parquet or dataset. Empty: it is found."""
    windows: Literal["random", "epochs"] = "random"
    """Training windows: at random positions, or one after another, each once per epoch."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule. optim.py builds them."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: Muon on the matrices of the blocks and AdamW on the rest."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay after warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    decay_fraction: float = 1.0
    """The last share of the run, in which a linear or cosine schedule decays."""
    final_fraction: float = 0.0
    """Final learning rate, as a share of the peak."""
    beta2: float = 0.999
    """AdamW's decay of the squared-gradient average. That of the gradient average is 0.9."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices. Vectors (biases, norm gains) have none."""
    grad_clip: float = 0.0
    """A gradient whose norm over all parameters is larger is scaled down to it. 0: never."""

    @classmethod
    def modern(cls, **fields: Any) -> Self:
        """Muon with the schedule of docs/recipe.md. Your arguments replace its values."""
        preset = {
            "name": "muon",
            "learning_rate": 6e-3,
            "schedule": "linear",
            "warmup_steps": 20,
            "decay_fraction": 0.6,
            "beta2": 0.95,
        }
        return cls(**(preset | fields))


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, on what, in which precision; how often to evaluate and log."""

    max_steps: int = 5000
    """Optimizer steps of the whole run."""
    batch_size: int = 64
    """Sequences per optimizer step, over all devices."""
    micro_batch_size: int = 0
    """Sequences per forward and backward pass, a divisor of batch_size. 0: automatic."""
    init_from: Path | None = None
    """Start from the parameters of this run. It must have the same model and vocabulary."""
    members: int = 1
    """Number of models trained together. Their prediction is the mean of their probabilities."""
    teacher: Path | None = None
    """Learn also from the probabilities of this run, or of all runs in this folder."""
    remat: bool = False
    """Save memory by recomputing activations in the backward pass (a third more work)."""
    attention: Literal["auto", "kernel", "cudnn", "plain"] = "auto"
    """auto: kernel on one GPU; cudnn on several GPUs without dropout; else plain."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of activations and matmuls. Weights are float32. auto: bfloat16 on GPU, TPU."""
    eval_interval: int = 500
    """Steps between evaluations, each with a sample, a checkpoint and loss.png."""
    eval_batches: int = 200
    """Random batches of val_loss_sampled, the original project's measure. 0: leave it out."""
    log_interval: int = 10
    """Steps between lines of metrics.jsonl."""
    sample_tokens: int = 500
    """Length of the sample written at every evaluation. 0: none."""


@dataclass(frozen=True)
class Config:
    """One training run."""

    model: ModelConfig = field(default_factory=GPTConfig)
    data: DataConfig = field(default_factory=TextDataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 1337
    """Seed of initial weights, batches and dropout."""

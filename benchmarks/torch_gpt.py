"""The same GPT in PyTorch, written for learning (OriginalGPT) and for speed (TunedGPT).

OriginalGPT is the project that gptjax reimplements: attention heads in a Python list, a masked
softmax, PyTorch's default initialisation. Its parameters have the original names
(`blocks.0.sa.heads.0.key.weight`), so a checkpoint of the original can be loaded. TunedGPT is the
fastest PyTorch that we can write, with every option of GPTConfig: one matmul for queries, keys and
values, fused attention, ready for torch.compile. `original_weights`, `tuned_weights` and
`bigram_weights` turn gptjax parameters into a state_dict; `params_from_original` turns a
state_dict of OriginalGPT into gptjax parameters.
"""

import re
import time
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gptjax.config import BigramConfig, GPTConfig, OptimConfig
from gptjax.errors import UserError


class TorchBigram(nn.Module):
    """tokens (B, T) -> logits (B, T, V), rows of one table."""

    def __init__(self, config: BigramConfig, vocab_size: int) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding_table(tokens)


# --- the original


class Head(nn.Module):
    """One head of causal self-attention, (B, T, D) -> (B, T, K)."""

    tril: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.n_embd // config.n_head
        self.key = nn.Linear(config.n_embd, width, bias=False)
        self.query = nn.Linear(config.n_embd, width, bias=False)
        self.value = nn.Linear(config.n_embd, width, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(config.block_size, config.block_size)))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        n_target = x.shape[1]
        k, q, v = self.key(x), self.query(x), self.value(x)
        scores = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        scores = scores.masked_fill(self.tril[:n_target, :n_target] == 0, float("-inf"))
        return self.dropout(functional.softmax(scores, dim=-1)) @ v


class MultiHeadAttention(nn.Module):
    """Computes the heads one by one and concatenates them: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(config) for _ in range(config.n_head)])
        self.proj = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.proj(torch.cat([head(x) for head in self.heads], dim=-1)))


class FeedForward(nn.Module):
    """The MLP, (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.ReLU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class OriginalBlock(nn.Module):
    """Attention and MLP, each normalised before and added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.sa = MultiHeadAttention(config)
        self.ffwd = FeedForward(config)
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.ln2 = nn.LayerNorm(config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class OriginalGPT(nn.Module):
    """tokens (B, T) -> logits (B, T, V).

    Raises UserError for options of GPTConfig that the original does not have.
    """

    def __init__(self, config: GPTConfig, vocab_size: int) -> None:
        super().__init__()
        if not is_original_style(config):
            raise UserError(
                "OriginalGPT has only the sizes and dropout of --model; leave out the rest"
            )
        self.token_embedding_table = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding_table = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.Sequential(*[OriginalBlock(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding_table(tokens) + self.position_embedding_table(positions)
        return self.lm_head(self.ln_f(self.blocks(x)))


def is_original_style(config: GPTConfig) -> bool:
    """Whether a configuration differs from the original's in sizes and dropout alone."""
    sizes = ("n_layer", "n_head", "n_embd", "block_size", "dropout")
    return config == GPTConfig(**{name: getattr(config, name) for name in sizes})


# --- tuned


def _norm(config: GPTConfig) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.n_embd, bias=config.bias)
    return nn.RMSNorm(config.n_embd, eps=1e-5)


class ShortConv(nn.Module):
    """A residual causal depthwise convolution, (B, T, D) -> (B, T, D)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        shapes = [config.n_embd] * (config.short_conv - 1)
        self.w = nn.ParameterList([nn.Parameter(torch.zeros(n)) for n in shapes])

    def forward(self, x: Tensor) -> Tensor:
        n_target, n_before = x.shape[1], len(self.w)
        window = functional.pad(x, (0, 0, n_before, 0))
        for j, w in enumerate(self.w, 1):
            x = x + w.to(x.dtype) * window[:, n_before - j : n_before - j + n_target]
        return x


class TunedBlock(nn.Module):
    """Attention and MLP, each normalised before and added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.attention_norm, self.mlp_norm = _norm(c), _norm(c)
        self.query_key_value = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.attention_bias)
        self.attention_output = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.gated = c.activation == "swiglu"
        n_hidden = c.hidden_width
        # One matmul computes hidden values and gate, in this order.
        self.mlp_hidden = nn.Linear(c.n_embd, n_hidden * (1 + self.gated), bias=c.bias)
        self.mlp_output = nn.Linear(n_hidden, c.n_embd, bias=c.bias)
        if c.short_conv:
            self.attention_input, self.mlp_input = ShortConv(c), ShortConv(c)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        c = self.config
        n_batch, n_target, width = x.shape
        y = self.attention_norm(x)
        qkv = self.query_key_value(self.attention_input(y) if c.short_conv else y)
        heads = (n_batch, n_target, c.n_head, width // c.n_head)
        q, k, v = (y.view(heads).transpose(1, 2) for y in qkv.split(width, dim=-1))
        if c.qk_norm:
            q, k = (functional.rms_norm(y, y.shape[-1:], eps=1e-5) for y in (q, k))
        if rotary is not None:
            q, k = _rotate(q, *rotary), _rotate(k, *rotary)
        dropout = c.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = self.attention_output(y.transpose(1, 2).reshape(x.shape))
        x = x + functional.dropout(y, c.dropout, self.training)
        y = self.mlp_norm(x)
        h = self.mlp_hidden(self.mlp_input(y) if c.short_conv else y)
        match c.activation:
            case "relu":
                h = functional.relu(h)
            case "gelu" | "gelu_tanh" as name:
                h = functional.gelu(h, approximate="tanh" if name == "gelu_tanh" else "none")
            case "relu2":
                h = functional.relu(h).square()
            case "swiglu":
                h, gate = h.chunk(2, dim=-1)
                h = functional.silu(gate) * h
        return x + functional.dropout(self.mlp_output(h), c.dropout, self.training)


class TunedGPT(nn.Module):
    """tokens (B, T) -> logits (B, T, V)."""

    rotary: Tensor

    def __init__(self, config: GPTConfig, vocab_size: int) -> None:
        super().__init__()
        c = self.config = config
        self.token_embedding = nn.Embedding(vocab_size, c.n_embd)
        if c.position == "learned":
            self.position_embedding = nn.Embedding(c.block_size, c.n_embd)
        else:
            half = c.n_embd // c.n_head // 2
            frequency = 10_000.0 ** -(torch.arange(half) / half)
            angle = torch.arange(c.block_size)[:, None] * frequency
            rotary = torch.stack([angle.cos(), angle.sin()])
            self.register_buffer("rotary", rotary, persistent=False)
        self.blocks = nn.ModuleList([TunedBlock(c) for _ in range(c.n_layer)])
        self.final_norm = _norm(c)
        self.head = nn.Linear(c.n_embd, vocab_size, bias=c.bias and not c.tie_embeddings)
        if c.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        c = self.config
        x, rotary = self.token_embedding(tokens), None
        if c.position == "learned":
            x = x + self.position_embedding.weight[: tokens.shape[1]]
        else:
            rotary = (self.rotary[0, : tokens.shape[1]], self.rotary[1, : tokens.shape[1]])
        for block in self.blocks:
            x = block(x, rotary)
        logits = self.head(self.final_norm(x)).float()
        if c.logit_softcap:
            logits = c.logit_softcap * torch.tanh(logits / c.logit_softcap)
        return logits / c.training_temperature if self.training else logits


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).type_as(x)


# --- training


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token."""
    return functional.cross_entropy(model(tokens).flatten(0, 1).float(), targets.flatten())


def adamw(model: nn.Module, config: OptimConfig, fused: bool) -> torch.optim.AdamW:
    """The optimizer of gptjax.optim: AdamW that decays matrices only."""
    if config.name != "adamw":
        raise UserError("the PyTorch twin trains with AdamW; add --optim.name adamw")
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (0.9, config.beta2)
    return torch.optim.AdamW(groups, config.learning_rate, betas, fused=fused)


class Trainer:
    """A fast PyTorch training loop: everything stays on the device, nothing waits for it.

    compile_mode: None is eager, "default" is torch.compile, "reduce-overhead" adds CUDA graphs.
    dtype: bfloat16 runs forward and backward under autocast; weights stay float32.
    """

    def __init__(
        self,
        model: nn.Module,
        optim_config: OptimConfig,
        fused: bool = True,
        compile_mode: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.dtype = model, dtype
        self.device = next(model.parameters()).device
        self.optimizer = adamw(model, optim_config, fused)
        self.grad_clip = optim_config.grad_clip
        self.compile_mode = compile_mode
        loss = loss_of if compile_mode is None else torch.compile(loss_of, mode=compile_mode)
        self.loss_of = loss

    def step(self, tokens: Tensor, targets: Tensor, rate: float | None = None) -> Tensor:
        """One optimizer step at this learning rate; returns the loss before it, on the device."""
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        if self.compile_mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss_of(self.model, tokens, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.optimizer.step()
        return loss.detach()


def random_windows(text: Tensor, block_size: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets, (B, T) each, from random places of a text on the device."""
    starts = torch.randint(len(text) - block_size, (batch_size, 1), device=text.device)
    windows = text[starts + torch.arange(block_size + 1, device=text.device)]
    return windows[:, :-1], windows[:, 1:]


@torch.inference_mode()
def generate(
    model: nn.Module, tokens: Tensor, n_tokens: int, block_size: int, greedy: bool
) -> Tensor:
    """Continues (B, T) by n_tokens without a cache: (B, T + n_tokens)."""
    for _ in range(n_tokens):
        logits = model(tokens[:, -block_size:])[:, -1]
        if greedy:
            token = logits.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial(functional.softmax(logits, dim=-1), 1)
        tokens = torch.cat([tokens, token], dim=1)
    return tokens


def matmul_rate(dtype: torch.dtype, device: str, size: int = 2048) -> float:
    """Floating-point operations per second of a size^3 matmul, best of three."""
    n_matmuls = 4 if device == "cpu" else 200
    x = torch.full((size, size), 0.5, dtype=dtype, device=device)
    seconds = []
    for _ in range(3):
        y = x
        start = time.perf_counter()
        for _ in range(n_matmuls):
            y = y @ x * 1e-3
        y[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * n_matmuls / min(seconds)


# --- conversion of weights


def tensors(arrays: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(a, np.float32)) for name, a in arrays.items()}


def bigram_weights(params: Any) -> dict[str, Tensor]:
    """gptjax parameters of a Bigram -> state_dict of a TorchBigram."""
    return tensors({"token_embedding_table.weight": params["table"]["table"]})


def affine(torch_name: str, params: Any) -> dict[str, Any]:
    """A Linear or a Norm: PyTorch stores W as (out, in) and calls a norm's gain a weight."""
    weight = params["kernel"].T if "kernel" in params else params["scale"]
    bias = {f"{torch_name}.bias": params["bias"]} if "bias" in params else {}
    return {f"{torch_name}.weight": weight, **bias}


def tuned_weights(params: Any) -> dict[str, Tensor]:
    """gptjax parameters of a GPT -> state_dict of a TunedGPT."""
    arrays = {"token_embedding.weight": params["token_embedding"]["table"]}
    if "position_embedding" in params:
        arrays["position_embedding.weight"] = params["position_embedding"]["table"]
    for i in range(sum(name.startswith("block_") for name in params)):
        block, to = params[f"block_{i}"], f"blocks.{i}"
        attention = block["attention"]
        qkv = [attention[name] for name in ("query", "key", "value")]
        qkv = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=-1), *qkv)
        arrays |= affine(f"{to}.query_key_value", qkv)
        arrays |= affine(f"{to}.attention_output", attention["output"])
        hidden = [block["mlp"][name] for name in ("hidden", "gate") if name in block["mlp"]]
        hidden = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=-1), *hidden)
        arrays |= affine(f"{to}.mlp_hidden", hidden)
        arrays |= affine(f"{to}.mlp_output", block["mlp"]["output"])
        arrays |= affine(f"{to}.attention_norm", block["attention_norm"])
        arrays |= affine(f"{to}.mlp_norm", block["mlp_norm"])
        for name in ("attention_input", "mlp_input"):
            if name in block:
                for j in range(1, len(block[name]) + 1):
                    arrays[f"{to}.{name}.w.{j - 1}"] = block[name][f"w_{j}"]
    arrays |= affine("final_norm", params["final_norm"])
    if "head" in params:
        arrays |= affine("head", params["head"])
    else:
        arrays["head.weight"] = params["token_embedding"]["table"]
    return tensors(arrays)


def original_weights(params: Any, config: GPTConfig) -> dict[str, Tensor]:
    """gptjax parameters of a GPT -> state_dict of an OriginalGPT."""
    arrays = {
        "token_embedding_table.weight": params["token_embedding"]["table"],
        "position_embedding_table.weight": params["position_embedding"]["table"],
    }
    tril = np.tril(np.ones((config.block_size, config.block_size)))
    for i in range(config.n_layer):
        block, to = params[f"block_{i}"], f"blocks.{i}"
        for name in ("key", "query", "value"):
            heads = np.split(np.asarray(block["attention"][name]["kernel"]).T, config.n_head)
            for h, weight in enumerate(heads):
                arrays[f"{to}.sa.heads.{h}.{name}.weight"] = weight
                arrays[f"{to}.sa.heads.{h}.tril"] = tril
        arrays |= affine(f"{to}.sa.proj", block["attention"]["output"])
        arrays |= affine(f"{to}.ffwd.net.0", block["mlp"]["hidden"])
        arrays |= affine(f"{to}.ffwd.net.2", block["mlp"]["output"])
        arrays |= affine(f"{to}.ln1", block["attention_norm"])
        arrays |= affine(f"{to}.ln2", block["mlp_norm"])
    arrays |= affine("ln_f", params["final_norm"]) | affine("lm_head", params["head"])
    return tensors(arrays)


def params_from_original(state_dict: dict[str, Tensor]) -> tuple[GPTConfig, Any]:
    """The state_dict of an OriginalGPT -> its configuration (without dropout), gptjax parameters.

    Raises UserError for a missing or an unknown weight.
    """
    left = {name: t.detach().float().numpy() for name, t in state_dict.items()}
    left = {name: a for name, a in left.items() if not name.endswith(".tril")}

    def take(name: str) -> np.ndarray:
        if name not in left:
            raise UserError(f"the state_dict has no {name}; is it of the original GPT?")
        return left.pop(name)

    def linear(name: str) -> dict[str, np.ndarray]:
        return {"kernel": take(f"{name}.weight").T, "bias": take(f"{name}.bias")}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": take(f"{name}.weight"), "bias": take(f"{name}.bias")}

    def count(pattern: str) -> int:
        return len({m[0] for m in map(re.compile(pattern).match, left) if m})

    n_layer, n_head = count(r"blocks\.\d+"), count(r"blocks\.0\.sa\.heads\.\d+")
    params: dict[str, Any] = {
        "token_embedding": {"table": take("token_embedding_table.weight")},
        "position_embedding": {"table": take("position_embedding_table.weight")},
        "final_norm": norm("ln_f"),
        "head": linear("lm_head"),
    }
    for i in range(n_layer):
        at = f"blocks.{i}"
        attention: dict[str, Any] = {"output": linear(f"{at}.sa.proj")}
        for name in ("query", "key", "value"):
            heads = [take(f"{at}.sa.heads.{h}.{name}.weight") for h in range(n_head)]
            attention[name] = {"kernel": np.concatenate(heads).T}
        params[f"block_{i}"] = {
            "attention": attention,
            "attention_norm": norm(f"{at}.ln1"),
            "mlp": {"hidden": linear(f"{at}.ffwd.net.0"), "output": linear(f"{at}.ffwd.net.2")},
            "mlp_norm": norm(f"{at}.ln2"),
        }
    if left:
        raise UserError(
            f"the state_dict has {next(iter(left))}, which the original GPT does not have"
        )
    block_size, n_embd = params["position_embedding"]["table"].shape
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}
    return GPTConfig(**sizes), params

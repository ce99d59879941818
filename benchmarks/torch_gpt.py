"""The GPT that gptjax reimplements, in PyTorch as one writes it to learn: a list of heads.

Architecture and initialisation are the seed's: pre-LayerNorm blocks, single attention heads in a
Python list, a masked softmax, dropout on the attention weights and on both residual branches,
PyTorch's default initialisation throughout.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from gptjax.config import GPTConfig


class Head(nn.Module):
    """One head of causal self-attention, (B, T, D) -> (B, T, K)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.n_embd // config.n_head
        self.key = nn.Linear(config.n_embd, width, bias=False)
        self.query = nn.Linear(config.n_embd, width, bias=False)
        self.value = nn.Linear(config.n_embd, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        mask = torch.tril(torch.ones(config.block_size, config.block_size))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n_target = x.shape[1]
        k, q, v = self.key(x), self.query(x), self.value(x)
        scores = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        scores = scores.masked_fill(self.mask[:n_target, :n_target] == 0, float("-inf"))
        return self.dropout(functional.softmax(scores, dim=-1)) @ v


class Block(nn.Module):
    """Attention and MLP, each normalised before and added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(config) for _ in range(config.n_head)])
        self.projection = nn.Linear(config.n_embd, config.n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.ReLU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
            nn.Dropout(config.dropout),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.mlp_norm = nn.LayerNorm(config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        y = torch.cat([head(y) for head in self.heads], dim=-1)
        x = x + self.dropout(self.projection(y))
        return x + self.mlp(self.mlp_norm(x))


class SeedGPT(nn.Module):
    """tokens (B, T) -> logits (B, T, V)."""

    def __init__(self, config: GPTConfig, vocab_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.Sequential(*[Block(config) for _ in range(config.n_layer)])
        self.final_norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        return self.head(self.final_norm(self.blocks(x)))


def train_step(
    model: SeedGPT, optimizer: torch.optim.Optimizer, tokens: Tensor, targets: Tensor
) -> float:
    """One optimizer step; returns the loss before it, in nats per token."""
    logits = model(tokens)
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()

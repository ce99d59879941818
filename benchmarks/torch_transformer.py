"""gptjax's EncoderDecoder in PyTorch: torch.nn.Transformer with embeddings and a head."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.torch_gpt import affine, tensors
from gptjax.config_encoders import EncoderDecoderConfig


class TorchEncoderDecoder(nn.Module):
    """tokens (B, T), source (B, S), source_mask (B, S) -> logits (B, T, V).

    Has the options of torch.nn.Transformer: learned positions, layer normalisation,
    ReLU, biases, no dropout.
    """

    def __init__(
        self, config: EncoderDecoderConfig, vocab_size: int, source_vocab_size: int
    ) -> None:
        super().__init__()
        c = config
        self.source_embedding = nn.Embedding(source_vocab_size, c.n_embd)
        self.source_position = nn.Embedding(c.source_block_size, c.n_embd)
        self.token_embedding = nn.Embedding(vocab_size, c.n_embd)
        self.position = nn.Embedding(c.block_size, c.n_embd)
        sizes = (c.n_embd, c.n_head, c.hidden_width, 0.0)
        layer = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True)
        norm = nn.LayerNorm(c.n_embd)
        encoder = nn.TransformerEncoder(layer, c.n_encoder_layer, norm, enable_nested_tensor=False)
        self.transformer = nn.Transformer(
            c.n_embd,
            c.n_head,
            num_decoder_layers=c.n_layer,
            dim_feedforward=c.hidden_width,
            dropout=0.0,
            custom_encoder=encoder,
            batch_first=True,
            norm_first=True,
        )
        self.head = nn.Linear(c.n_embd, vocab_size)

    def forward(self, tokens: Tensor, source: Tensor, source_mask: Tensor) -> Tensor:
        n_source, n_target = source.shape[1], tokens.shape[1]
        y = self.transformer(
            self.source_embedding(source) + self.source_position.weight[:n_source],
            self.token_embedding(tokens) + self.position.weight[:n_target],
            tgt_mask=torch.ones(n_target, n_target).triu(1).bool(),
            src_key_padding_mask=~source_mask,
            memory_key_padding_mask=~source_mask,
        )
        return self.head(y)


def weights(params: Any) -> dict[str, Tensor]:
    """gptjax parameters of an EncoderDecoder -> state_dict of a TorchEncoderDecoder."""
    encoder, decoder = params["encoder"], params["decoder"]
    arrays = {
        "source_embedding.weight": encoder["token_embedding"]["table"],
        "source_position.weight": encoder["position_embedding"]["table"],
        "token_embedding.weight": decoder["token_embedding"]["table"],
        "position.weight": decoder["position_embedding"]["table"],
        **affine("head", decoder["head"]),
    }
    for name, stack in (("encoder", encoder), ("decoder", decoder)):
        arrays |= affine(f"transformer.{name}.norm", stack["final_norm"])
        for i in range(sum(key.startswith("block_") for key in stack)):
            block, at = stack[f"block_{i}"], f"transformer.{name}.layers.{i}"
            norms = ["attention_norm", "mlp_norm"]
            arrays |= _attention(f"{at}.self_attn", block["attention"])
            if "cross_attention" in block:
                norms.insert(1, "cross_attention_norm")
                arrays |= _attention(f"{at}.multihead_attn", block["cross_attention"])
            for number, norm in enumerate(norms, 1):
                arrays |= affine(f"{at}.norm{number}", block[norm])
            arrays |= affine(f"{at}.linear1", block["mlp"]["hidden"])
            arrays |= affine(f"{at}.linear2", block["mlp"]["output"])
    return tensors(arrays)


def _attention(at: str, params: Any) -> dict[str, Any]:
    """PyTorch's queries, keys and values have biases, which are zero here."""
    qkv = [np.asarray(params[name]["kernel"]).T for name in ("query", "key", "value")]
    return {
        f"{at}.in_proj_weight": np.concatenate(qkv),
        f"{at}.in_proj_bias": np.zeros(3 * len(qkv[0]), np.float32),
        **affine(f"{at}.out_proj", params["output"]),
    }

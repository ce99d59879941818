"""A small GPT for a laptop without a GPU: 4 layers, 4 heads, width 128, block 64.

    python train.py --config configs/gpt_cpu.py

Two CPU cores: about two minutes. Ends near val_loss 1.62 and writes Shakespeare-like text.
Beside the seed's model, it has rotary positions, RMSNorm, QK-norm, squared ReLU, output
projections that start at zero, a logit soft-cap and the Muon optimizer, each of which makes a
short run learn faster.
"""

from gptjax.config import Config, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(
        n_layer=4,
        n_head=4,
        n_embd=128,
        block_size=64,
        dropout=0.0,  # one pass over so little text does not overfit
        position="rotary",
        norm="rmsnorm",
        activation="relu2",
        qk_norm=True,
        zero_init=True,
        logit_softcap=15.0,
        bias=False,
    ),
    optim=OptimConfig(
        name="muon",
        learning_rate=6e-3,
        muon_learning_rate=0.02,
        schedule="linear",
        decay_fraction=0.6,
        warmup_steps=20,
        beta2=0.95,
    ),
    train=TrainConfig(max_steps=1100, batch_size=16, eval_interval=275, eval_batches=20),
)

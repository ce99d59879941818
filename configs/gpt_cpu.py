"""A small GPT for a laptop without a GPU: 3 layers, 4 heads, width 128, block 256.

    python train.py --config configs/gpt_cpu.py

Two CPU cores: one to two minutes. Ends near val_loss 1.51, where the seed's best is 1.4994, and
writes Shakespeare-like text. What it has beside the seed's model, and how much each idea gives,
stands in docs/recipe.md.
"""

from gptjax.config import Config, DataConfig, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(
        n_layer=3,
        n_head=4,
        n_embd=128,
        block_size=256,
        dropout=0.0,
        position="rotary",
        norm="rmsnorm",
        activation="relu2",
        qk_norm=True,
        short_conv=3,
        zero_init=True,
        logit_softcap=15.0,
        bias=False,
    ),
    data=DataConfig(windows="epochs"),
    optim=OptimConfig(
        name="muon",
        learning_rate=6e-3,
        muon_learning_rate=0.02,
        schedule="linear",
        decay_fraction=0.6,
        warmup_steps=20,
        beta2=0.95,
        weight_decay=0.01,
    ),
    train=TrainConfig(max_steps=1600, batch_size=4, eval_interval=400, eval_batches=20),
)

"""A small GPT for a laptop without a GPU: 3 layers, 4 heads, width 128, block 256.

    python train.py --config configs/gpt_cpu.py

Two CPU cores: one to two minutes. Ends near val_loss 1.51, where the seed's best is 1.4994, and
writes Shakespeare-like text. What it has beside the seed's model, and how much each idea gives,
stands in docs/recipe.md.
"""

from gptjax.config import Config, GPTConfig, OptimConfig, TextDataConfig, TrainConfig

config = Config(
    model=GPTConfig.modern(n_layer=3, n_head=4, n_embd=128, block_size=256),
    data=TextDataConfig(windows="epochs"),
    optim=OptimConfig.modern(),
    train=TrainConfig(max_steps=1600, batch_size=4, eval_interval=400, eval_batches=20),
)

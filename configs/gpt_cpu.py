"""A small GPT for a laptop without a GPU: 3 layers, 4 heads, width 128, block 256.

    python train.py --config configs/gpt_cpu.py

One to three minutes on two CPU cores. Ends near val_loss 1.50 and writes text like Shakespeare's.
The original PyTorch GPT reaches 1.4994 with 10.8 M parameters. docs/recipe.md says what differs,
and how much each idea gives.
"""

from gptjax.config import Config, GPTConfig, OptimConfig, TextDataConfig, TrainConfig

config = Config(
    model=GPTConfig.modern(
        n_layer=3, n_head=4, n_embd=128, block_size=256, training_temperature=0.94
    ),
    data=TextDataConfig(windows="epochs"),
    optim=OptimConfig.modern(learning_rate=0.015),
    train=TrainConfig(max_steps=1700, batch_size=4, eval_interval=425, eval_batches=20),
)

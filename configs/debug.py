"""A tiny GPT that trains in seconds, to check that everything works.

    python train.py --config configs/debug.py

About 15 seconds on a CPU, most of them compiling. Ends near val_loss 2.5.
"""

from gptjax.config import Config, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, dropout=0.1),
    optim=OptimConfig(learning_rate=1e-2),
    train=TrainConfig(max_steps=200, batch_size=16, eval_interval=100, eval_batches=20),
)

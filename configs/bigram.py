"""The bigram of the original PyTorch project: a table of which character follows which.

    python train.py --config configs/bigram.py

Under a minute on a CPU. Ends near val_loss 2.49, the best that a bigram of characters can reach.
"""

from gptjax.config import BigramConfig, Config, OptimConfig, TrainConfig

config = Config(
    model=BigramConfig(block_size=8),
    optim=OptimConfig(learning_rate=1e-2),
    train=TrainConfig(max_steps=3000, batch_size=32, eval_interval=300),
)

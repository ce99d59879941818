"""The lowest validation loss at block 256 with one model: 6 layers, 6 heads, width 384.

    python train.py --config configs/gpt_best.py

For one GPU. About 50 epochs; dropout and weight decay limit overfitting. Whole runs have not been
measured; docs/benchmarks.md has the first 1,000 steps on an H100.
"""

from gptjax.config import Config, GPTConfig, OptimConfig, TextDataConfig, TrainConfig

config = Config(
    model=GPTConfig.modern(n_layer=6, n_head=6, n_embd=384, block_size=256, dropout=0.2),
    data=TextDataConfig(windows="epochs"),
    optim=OptimConfig.modern(muon_learning_rate=0.01, weight_decay=0.5),
    train=TrainConfig(max_steps=3000, batch_size=64, eval_interval=250),
)

"""The size of the original PyTorch GPT in as few steps as possible: 6 layers, 6 heads, width 384.

    python train.py --config configs/gpt_fast.py

For one GPU. The recipe is that of configs/gpt_cpu_10min.py. On an H100 its val_loss passed the
original's best (1.4994, at step 3,500) between steps 200 and 300, was lowest at step 300 (1.4545),
and rose to 1.4891 at step 500.
"""

from gptjax.config import Config, GPTConfig, OptimConfig, TextDataConfig, TrainConfig

config = Config(
    model=GPTConfig.modern(n_layer=6, n_head=6, n_embd=384, block_size=256, dropout=0.1),
    data=TextDataConfig(windows="epochs"),
    optim=OptimConfig.modern(weight_decay=0.1),
    train=TrainConfig(max_steps=500, batch_size=64, eval_interval=100),
)

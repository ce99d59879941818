"""The original PyTorch GPT, 10.8 M parameters: 6 layers, 6 heads, width 384, block 256.

    python train.py --config configs/gpt.py

For one GPU. On a CPU use configs/gpt_cpu.py. The original's best validation loss is 1.4994 at step
3,500, a mean over 200 random batches (val_loss_sampled).
"""

from gptjax.config import Config, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256, dropout=0.2),
    optim=OptimConfig(learning_rate=3e-4, schedule="constant"),
    train=TrainConfig(max_steps=5000, batch_size=64, eval_interval=500),
)

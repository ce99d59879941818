"""nanoGPT's published configuration for a CPU, the reference for a laptop run in PyTorch.

    python -m benchmarks.compare train --config benchmarks/nanogpt_cpu.py

nanoGPT's README gives a validation loss of 1.88. Three things differ here: the initialisation is
PyTorch's default, the output head has its own weights, and GELU has its tanh form.
"""

from gptjax.config import Config, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(
        n_layer=4, n_head=4, n_embd=128, block_size=64, dropout=0.0, activation="gelu", bias=False
    ),
    optim=OptimConfig(
        learning_rate=1e-3,
        schedule="cosine",
        final_fraction=0.1,
        warmup_steps=100,
        beta2=0.99,
        weight_decay=0.1,
        grad_clip=1.0,
    ),
    train=TrainConfig(max_steps=2000, batch_size=12, eval_interval=500, eval_batches=20),
)

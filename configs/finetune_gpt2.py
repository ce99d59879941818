"""Fine-tunes GPT-2 (124 M parameters) on your own text.

    gptjax import gpt2 gpt2/ --out runs/gpt2
    python train.py --config configs/finetune_gpt2.py --data.path my.txt

gpt2/ is a folder in Hugging Face's format. For another size of GPT-2 change the numbers below; the
error message of train.py lists them. A starting point for one GPU, not measured yet. The first
val_loss is GPT-2's own on your text, because step 0 is evaluated.
"""

from pathlib import Path

from gptjax.config import Config, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(
        n_layer=12,
        n_head=12,
        n_embd=768,
        block_size=256,  # of GPT-2's 1,024: a quarter of the memory
        dropout=0.1,
        activation="gelu_tanh",
        attention_bias=True,
        tie_embeddings=True,
    ),
    optim=OptimConfig(
        learning_rate=5e-5,
        schedule="linear",
        warmup_steps=20,
        beta2=0.95,
        weight_decay=0.1,
        grad_clip=1.0,
    ),
    train=TrainConfig(
        init_from=Path("runs/gpt2"),
        max_steps=400,
        batch_size=16,
        eval_interval=50,
        eval_batches=0,
        sample_tokens=200,
    ),
)

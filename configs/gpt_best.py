"""The lowest validation loss at block 256 with one model: 6 layers, 6 heads, width 384.

    python train.py --config configs/gpt_best.py

One GPU. The text goes by some fifty times, against which dropout and weight decay stand. Not
measured on a GPU yet.
"""

from gptjax.config import Config, DataConfig, GPTConfig, OptimConfig, TrainConfig

config = Config(
    model=GPTConfig(
        n_layer=6,
        n_head=6,
        n_embd=384,
        block_size=256,
        dropout=0.2,
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
        muon_learning_rate=0.01,
        schedule="linear",
        decay_fraction=0.6,
        warmup_steps=20,
        beta2=0.95,
        weight_decay=0.5,
    ),
    train=TrainConfig(max_steps=3000, batch_size=64, eval_interval=250),
)

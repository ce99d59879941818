"""Spoken digits: a small Whisper for a laptop without a GPU, on the Free Spoken Digit Dataset.

    python train.py --config configs/digits_cpu.py

Strings of one to seven digits, made anew for every step from single recordings.
"""

from gptjax.config import Config, DataConfig, OptimConfig, SpeechConfig, TrainConfig

config = Config(
    model=SpeechConfig(
        n_encoder_layer=3,
        n_layer=2,
        n_head=4,
        n_embd=128,
        block_size=8,
        source_block_size=320,
        dropout=0.0,
        position="rotary",
        norm="rmsnorm",
        activation="relu2",
        qk_norm=True,
        short_conv=3,
        zero_init=True,
        logit_softcap=15.0,
        bias=False,
    ),
    data=DataConfig(
        name="fsdd",
        tokenizer="word",
        string_clips=7,
        speed_change=0.1,
    ),
    optim=OptimConfig(
        name="muon",
        learning_rate=6e-3,
        muon_learning_rate=0.02,
        schedule="linear",
        decay_fraction=0.6,
        warmup_steps=20,
        beta2=0.95,
        weight_decay=0.1,
    ),
    train=TrainConfig(max_steps=1500, batch_size=16, eval_interval=300, eval_batches=0),
)

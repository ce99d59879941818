"""Spoken digits at full size: 6 + 3 layers, width 256, on the Free Spoken Digit Dataset.

    python train.py --config configs/digits.py

For one GPU. Not measured yet. The goal is 99.5 % of single digits and a WER of 0.7 % on strings.
The recipe is that of configs/digits_cpu.py with a larger model and more steps. Noise, masks and
dropout are added: they should help when a run has more epochs.
"""

from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig

config = Config(
    model=SpeechConfig.modern(
        n_encoder_layer=6,
        n_layer=3,
        n_head=4,
        n_embd=256,
        block_size=8,
        source_block_size=320,
        predict_frames=True,
        dropout=0.2,
    ),
    data=SpeechDataConfig(
        tokenizer="word",
        string_clips=7,
        speed_change=0.2,
        noise=0.5,
        spec_masks=2,
    ),
    optim=OptimConfig.modern(warmup_steps=50, weight_decay=0.1),
    train=TrainConfig(max_steps=6000, batch_size=64, eval_interval=500, eval_batches=0),
)

"""Spelling to pronunciation at full size: an encoder-decoder on CMUdict, 6 + 4 layers, width 256.

    python train.py --config configs/g2p.py

For one GPU. Not measured yet. The goal is to beat configs/g2p_cpu.py (a test WER of 25 % and a PER
of 6 %). The recipe is the same, with dropout because of its thirty epochs.
"""

from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_encoders import EncoderDecoderConfig, PairsDataConfig

config = Config(
    model=EncoderDecoderConfig.modern(
        n_encoder_layer=6,
        n_layer=4,
        n_head=4,
        n_embd=256,
        block_size=32,
        source_block_size=32,
        dropout=0.2,
    ),
    data=PairsDataConfig(tokenizer="word", val_fraction=0.05),
    optim=OptimConfig.modern(
        muon_learning_rate=0.01, warmup_steps=50, decay_fraction=1.0, weight_decay=0.1
    ),
    train=TrainConfig(max_steps=14_000, batch_size=256, eval_interval=1000, eval_batches=0),
)

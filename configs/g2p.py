"""Spelling to pronunciation at full size: an encoder-decoder on CMUdict, 6 + 4 layers, width 256.

    python train.py --config configs/g2p.py

One GPU. Aims below what configs/g2p_cpu.py reaches, a test WER of 27 % and a PER of 6.4 %. Not
measured on a GPU yet; the recipe is the same, with dropout for its thirty epochs.
"""

from gptjax.config import Config, DataConfig, EncoderDecoderConfig, OptimConfig, TrainConfig

config = Config(
    model=EncoderDecoderConfig(
        n_encoder_layer=6,
        n_layer=4,
        n_head=4,
        n_embd=256,
        block_size=32,
        source_block_size=32,
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
    data=DataConfig(name="cmudict", source_tokenizer="char", tokenizer="word", val_fraction=0.05),
    optim=OptimConfig(
        name="muon",
        learning_rate=6e-3,
        muon_learning_rate=0.02,
        schedule="linear",
        decay_fraction=0.6,
        warmup_steps=50,
        beta2=0.95,
        weight_decay=0.1,
    ),
    train=TrainConfig(max_steps=14_000, batch_size=256, eval_interval=1000, eval_batches=0),
)

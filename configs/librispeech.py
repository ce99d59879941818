"""English speech: 12 + 6 layers, width 512, on LibriSpeech (100 to 960 hours) or a folder like it.

    python train.py --config configs/librispeech.py --data.path LibriSpeech

One GPU or several, which share the batch. Wants the extras speech and bpe. Folders that are called
train-*, dev-* and test-* are the three splits. A starting point, not measured yet: the test suite
runs its path end to end on a folder of minutes.
"""

from gptjax.config import Config, DataConfig, OptimConfig, SpeechConfig, TrainConfig

config = Config(
    model=SpeechConfig(
        n_encoder_layer=12,
        n_layer=6,
        n_head=8,
        n_embd=512,
        block_size=448,
        source_block_size=1500,
        dropout=0.1,
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
        name="librispeech",
        tokenizer="bpe",
        vocab_size=1024,
        speed_change=0.1,
        spec_masks=2,
    ),
    optim=OptimConfig(
        name="muon",
        learning_rate=3e-3,
        muon_learning_rate=0.02,
        schedule="linear",
        decay_fraction=0.6,
        warmup_steps=1000,
        beta2=0.95,
        weight_decay=0.1,
    ),
    train=TrainConfig(max_steps=40_000, batch_size=128, eval_interval=2000, eval_batches=0),
)

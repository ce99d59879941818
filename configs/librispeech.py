"""English speech: 12 + 6 layers, width 512, on LibriSpeech (100 to 960 hours) or a folder like it.

    python train.py --config configs/librispeech.py --data.path LibriSpeech

For one GPU or several, which share the batch. Needs the extras speech and bpe. Folders named
train-*, dev-* and test-* are the three splits. A starting point, not measured yet. A test runs it
end to end on a small folder.
"""

from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig

config = Config(
    model=SpeechConfig.modern(
        n_encoder_layer=12,
        n_layer=6,
        n_head=8,
        n_embd=512,
        block_size=448,
        source_block_size=1500,
        dropout=0.1,
    ),
    data=SpeechDataConfig(
        name="librispeech",
        tokenizer="bpe",
        vocab_size=1024,
        speed_change=0.1,
        spec_masks=2,
    ),
    optim=OptimConfig.modern(learning_rate=3e-3, warmup_steps=1000, weight_decay=0.1),
    train=TrainConfig(max_steps=40_000, batch_size=128, eval_interval=2000, eval_batches=0),
)

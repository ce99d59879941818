"""Spoken digits: a small model with Whisper's architecture, for a laptop without a GPU.

    python train.py --config configs/digits_cpu.py

About ten minutes on two CPU cores. The data is the Free Spoken Digit Dataset, with 1,500 digits
that eSpeak reads aloud (pip install -e '.[speech,espeak]'). Every training example is a new string
of one to five digits, joined from recordings of single digits. Speed, tempo, voice and microphone
are changed at random, so that the model also understands people whom it never heard.
"""

from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_encoders import SpeechConfig, SpeechDataConfig

config = Config(
    model=SpeechConfig.modern(
        n_encoder_layer=3,
        n_layer=2,
        n_head=4,
        n_embd=128,
        block_size=6,
        source_block_size=240,
        predict_frames=True,
        n_mels=32,
    ),
    data=SpeechDataConfig(
        tokenizer="word",
        string_clips=5,
        extra_clips=1500,
        speed_change=0.15,
        tempo_change=0.5,
        voice_change=0.1,
        channel_change=0.9,
    ),
    optim=OptimConfig.modern(weight_decay=0.1),
    train=TrainConfig(max_steps=1500, batch_size=16, eval_interval=300, eval_batches=0),
)

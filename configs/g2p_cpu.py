"""Spelling to pronunciation: an encoder-decoder for a laptop without a GPU, on CMUdict.

    python train.py --config configs/g2p_cpu.py
    gptjax evaluate runs/g2p_cpu

8 to 19 minutes on two CPU cores, six epochs. Ends near val_loss 0.158, and on the test split near a
word error rate of 25 % and a phoneme error rate of 6 %. No dropout, because six epochs are too few
to overfit.
"""

from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_encoders import EncoderDecoderConfig, PairsDataConfig

config = Config(
    model=EncoderDecoderConfig.modern(
        n_encoder_layer=3,
        n_layer=2,
        n_head=4,
        n_embd=128,
        block_size=32,
        source_block_size=32,
    ),
    data=PairsDataConfig(tokenizer="word", val_fraction=0.05),
    optim=OptimConfig.modern(muon_learning_rate=0.01, decay_fraction=1.0, weight_decay=0.1),
    train=TrainConfig(max_steps=6000, batch_size=128, eval_interval=1000, eval_batches=0),
)

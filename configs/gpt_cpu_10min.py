"""A lower loss than the original PyTorch GPT, without a GPU: 4 layers, 4 heads, width 160.

    python train.py --config configs/gpt_cpu_10min.py

Five to thirteen minutes on two CPU cores. Ends near val_loss 1.39. The original reaches 1.4994 on a
GPU, with nine times the parameters. The run has almost four epochs. Against overfitting it has
weight decay, heads that predict further ahead, and a training temperature. docs/recipe.md says what
each gives.
"""

from gptjax.config import Config, GPTConfig, OptimConfig, TextDataConfig, TrainConfig

config = Config(
    model=GPTConfig.modern(
        n_layer=4,
        n_head=4,
        n_embd=160,
        block_size=512,
        predict_ahead=4,
        training_temperature=0.92,
    ),
    data=TextDataConfig(windows="epochs"),
    optim=OptimConfig.modern(muon_learning_rate=0.01, weight_decay=0.1),
    train=TrainConfig(max_steps=3780, batch_size=2, eval_interval=756, eval_batches=50),
)

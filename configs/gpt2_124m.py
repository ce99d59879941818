"""GPT-2's smallest size, 124,439,808 parameters, on billions of tokens, for eight GPUs.

    gptjax prepare --out tokens --tokenizer gpt2 --val-fraction 0.0005 *.txt
    python train.py --config configs/gpt2_124m.py --data.path tokens

Needs the extra bpe. Not measured. By arithmetic, 570,000 steps are 299 billion tokens of 854 MFLOP
each. Eight H100s at their peak need 9 hours for that, and about a day at 35 to 40 % of it. 16
sequences need about 34 GB on each GPU.

Expect a loss of 2.85. nanoGPT reports it for OpenWebText (9 billion tokens) with this schedule,
without biases, and batches of 480 (https://github.com/karpathy/nanoGPT, "reproducing GPT-2"). The
batch here is 512, because 8 to 512 GPUs share it evenly.

Several machines: deploy/slurm.sbatch, deploy/k8s-jobset.yaml. With less memory, or more than 128
GPUs, set --train.micro-batch-size. It counts the sequences of all GPUs together.
"""

from gptjax.config import Config, GPTConfig, MeshConfig, OptimConfig, TextDataConfig, TrainConfig

config = Config(
    model=GPTConfig(
        n_layer=12,
        n_head=12,
        n_embd=768,
        block_size=1024,
        dropout=0.0,
        activation="gelu_tanh",
        attention_bias=True,
        tie_embeddings=True,
    ),
    data=TextDataConfig(tokenizer="gpt2"),
    optim=OptimConfig(
        learning_rate=6e-4,
        schedule="cosine",
        final_fraction=0.1,
        warmup_steps=2000,
        beta2=0.95,
        weight_decay=0.1,
        grad_clip=1.0,
    ),
    mesh=MeshConfig(data=-1, fsdp=1, model=1),  # as many GPUs as there are, each with the model
    train=TrainConfig(
        max_steps=570_000,
        batch_size=512,
        micro_batch_size=128,
        eval_interval=2000,
        eval_batches=0,
    ),
)

"""Train a model: python train.py --config configs/gpt.py. The loop is in gptjax/train.py."""

from gptjax.train import main

if __name__ == "__main__":
    main()

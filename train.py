"""Train a model: `python train.py --config FILE` is the same as `gptjax train --config FILE`."""

from gptjax.train import main

if __name__ == "__main__":
    main()

"""Train a model: `python train.py --config FILE` is the same as `gptjax train --config FILE`."""

import sys

from gptjax.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])

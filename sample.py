"""Sample from a run: `python sample.py runs/gpt` is the same as `gptjax sample runs/gpt`."""

import sys

from gptjax.cli import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])

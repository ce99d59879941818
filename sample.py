"""Sample from a run: `python sample.py runs/gpt` is the same as `gptjax sample runs/gpt`."""

from gptjax.commands.sample import main

if __name__ == "__main__":
    main()

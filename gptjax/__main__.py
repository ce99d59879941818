"""`python -m gptjax COMMAND ...` is the same as `gptjax COMMAND ...`."""

from gptjax.cli import main

if __name__ == "__main__":
    main()

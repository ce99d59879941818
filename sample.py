"""Sample from a run: python sample.py runs/gpt --prompt "ROMEO:". See gptjax/commands/sample.py."""

from gptjax.commands.sample import main

if __name__ == "__main__":
    main()

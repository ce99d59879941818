"""`gptjax sample --interactive`: answers line by line, with line editing, history and commands."""

import contextlib
import sys
from collections.abc import Callable, Mapping

from gptjax.errors import UserError

ASKS = "asks for each line with --interactive; leave one out"


def converse(
    name: str,
    answer: Callable[[str], None],
    commands: Mapping[str, Callable[[str], None]],
    show_prompt: bool = True,
) -> None:
    """Calls answer(line) until /quit or Ctrl-D. A UserError is printed and does not end it.

    name: of what is read, shown as "prompt> ". commands: further ones, {"/seed": f}, where f gets
    the rest of the line.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - from now on, input() edits lines and remembers them
    listed = "  ".join([*(f"{command} VALUE" for command in commands), "/help", "/quit"])
    if show_prompt and sys.stdin.isatty():
        print(f"commands: {listed}", file=sys.stderr)
    while True:
        try:
            line = input(f"{name}> " if show_prompt else "")
        except (EOFError, KeyboardInterrupt):
            print("\n" if show_prompt else "", end="")
            return
        except UnicodeDecodeError as error:
            print(f"error: the {name} is not UTF-8 at byte {error.start}", file=sys.stderr)
            continue
        word, _, rest = line.strip().partition(" ")
        try:
            if word == "/quit":
                return
            if word == "/help":
                print(f"commands: {listed}; \\n is a line break", file=sys.stderr)
            elif word in commands:
                commands[word](rest.strip())
            else:
                answer(line.replace("\\n", "\n"))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)

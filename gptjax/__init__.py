"""gptjax: a GPT from scratch in JAX, small enough to read and fast enough to keep.

    import gptjax
    run = gptjax.load("runs/gpt_cpu")
    print(run.generate("ROMEO:", max_new_tokens=200))

docs/python.md shows the rest. Nothing is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gptjax.api import Run, UserError, load, train_run

__all__ = ["Run", "UserError", "__version__", "load", "train_run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gptjax' has no attribute {name!r}")
    from gptjax import api

    return getattr(api, name)

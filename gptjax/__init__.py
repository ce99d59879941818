"""gptjax: a GPT from scratch in JAX, small enough to read and fast enough to keep."""

__version__ = "0.1.0"

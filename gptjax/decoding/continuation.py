"""The text of one continuation while its tokens are made, and where it ends."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from gptjax.data.tokenizer import TextTokenizer


class Continuation:
    """The continuation of one prompt. It ends before a token of `ends`, or before a stop text.

    What is shown of prompt and continuation is decode(prompt tokens + new tokens): words get their
    space, and a character of several bytes may begin in the prompt.
    """

    def __init__(
        self,
        tok: TextTokenizer,
        prompt_N: Sequence[int] | np.ndarray,
        ends: Collection[int] = (),
        stop: str = "",
    ):
        """prompt_N: empty if only the start token is read. stop: "" for none."""
        self._tok, self._ends, self._stop = tok, ends, stop
        self._ids = [int(i) for i in prompt_N]
        self._n_shown = 0
        self.prompt = tok.decode(self._ids)
        self.text = ""
        """Everything after the prompt."""
        self.is_complete = False

    def add(self, tokens: Iterable[int] | np.ndarray) -> str:
        """Takes the next tokens; returns the new text that later tokens cannot change."""
        if self.is_complete:
            return ""
        for token in tokens:
            if int(token) in self._ends:
                self.is_complete = True
                break
            self._ids.append(int(token))
        self.text = self._tok.decode(self._ids)[len(self.prompt) :]
        if self._stop and self._stop in self.text:
            self.text = self.text.partition(self._stop)[0]
            self.is_complete = True
        return self.rest() if self.is_complete else self._show(self._n_settled())

    def rest(self) -> str:
        """The text that `add` has not yet returned; call it when there are no more tokens."""
        return self._show(len(self.text))

    def _show(self, n: int) -> str:
        new = self.text[self._n_shown : n]
        self._n_shown = max(self._n_shown, n)
        return new

    def _n_settled(self) -> int:
        """Length of the text without its end that may still become something else."""
        # An incomplete UTF-8 character decodes to U+FFFD; its other bytes are yet to come.
        settled = self.text.rstrip("\ufffd")
        for n in range(min(len(self._stop), len(settled)), 0, -1):
            if settled.endswith(self._stop[:n]):  # perhaps the start of the stop text
                return len(settled) - n
        return len(settled)

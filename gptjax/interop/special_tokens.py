"""Tokens that Hugging Face's files list besides the vocabulary, such as <|startoftext|>.

added_tokens.json has their ids. tokenizer_config.json has ids and options in a newer form.
special_tokens_map.json says which tokens are special: they are not part of a decoded text.
"""

from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from gptjax.errors import UserError, import_extra
from gptjax.interop.files import NEEDS, read_json


class _Options(TypedDict):
    """How the file writes a token with options."""

    content: str
    single_word: NotRequired[bool]
    lstrip: NotRequired[bool]
    rstrip: NotRequired[bool]
    normalized: NotRequired[bool]
    special: NotRequired[bool]


class _TokenizerConfig(TypedDict):
    """The form of tokenizer_config.json, as far as it is read."""

    added_tokens_decoder: NotRequired[dict[str, _Options]]


class _Listed(NamedTuple):
    """A token of one of the files."""

    path: Path
    id: int | None
    options: dict[str, Any]
    """As in _Options."""


def add_listed(made: Any, folder: Path) -> None:
    """Gives a Tokenizer of the package tokenizers the tokens that the files of a folder list.

    Raises UserError for a file of another form, and for a token whose id is not the one that the
    tokenizer gives it.
    """
    tokenizers, listed = import_extra("tokenizers", NEEDS), _read(folder)
    # As transformers does: tokens with an id in the order of ids, then those without.
    for token in sorted(listed, key=lambda token: (token.id is None, token.id)):
        options = dict(token.options)
        content = options.pop("content")
        known, next_id = made.token_to_id(content), made.get_vocab_size(with_added_tokens=True)
        found = next_id if known is None else known
        if token.id not in (None, found):
            raise UserError(
                f"{token.path}: {content!r} has the id {token.id}, but the vocabulary gives it "
                f"{found}; fetch the files of the tokenizer again, from one place"
            )
        added = made.get_added_tokens_decoder().get(found)
        if added is None or (token.options.get("special") and not added.special):
            one = [tokenizers.AddedToken(content, **options)]
            (made.add_special_tokens if options.get("special") else made.add_tokens)(one)


def _read(folder: Path) -> list[_Listed]:
    listed = []
    path = folder / "added_tokens.json"
    if path.is_file():
        for content, i in read_json(path, dict[str, int]).items():
            listed.append(_Listed(path, i, {"content": content}))
    path = folder / "tokenizer_config.json"
    if path.is_file():
        for i, options in read_json(path, _TokenizerConfig).get("added_tokens_decoder", {}).items():
            if not i.isdecimal():
                raise UserError(f"{path}: added_tokens_decoder has {i!r}, but must have an id")
            listed.append(_Listed(path, int(i), {**options}))
    path = folder / "special_tokens_map.json"
    if path.is_file():
        form: Any = dict[str, str | _Options | list[str | _Options] | None]
        for entry in read_json(path, form).values():
            for token in entry if isinstance(entry, list) else [entry]:
                if token is not None:
                    options = {"content": token} if isinstance(token, str) else token
                    listed.append(_Listed(path, None, {**options, "special": True}))
    return listed

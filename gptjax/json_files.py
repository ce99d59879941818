"""JSON files, which may come from elsewhere: read with a limit, and checked against a form.

A form is a type that says what a value must be: `dict[str, int]`, `list[str]`, `Literal[4, 8]`,
`int | None`, a TypedDict, Path for a text that can be the name of a file, or Any for a value that
another library checks. An error names the file, the place inside it and what was expected there:

    runs/a/tokenizer.json: target.words[3] is 5, but must be a text; restore the file

What is refused for every form: NaN and Infinity, which are not JSON; a key that an object has
twice; lists and objects inside each other more than DEEPEST times; files above MOST_BYTES; a
checksum in the file (see checksums.seal) that differs.
"""

import json
import math
import os
import reprlib
import types
import typing
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from gptjax.checksums import unseal
from gptjax.errors import UserError
from gptjax.reading import read_bytes

T = TypeVar("T")

MOST_BYTES = 1 << 27
"""The largest file: 128 MB. The vocabularies of large language models have 10 to 40 MB."""
DEEPEST = 100

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    types.NoneType: "null",
    Path: "the name of a file",
}


def read(path: Path, form: type[T], fix: str) -> T:
    """The content of a JSON file of this form.

    fix: the end of the error message: what a user can do about a missing or broken file. Raises
    UserError for a file that cannot be read, is no JSON, or has another form.
    """
    try:
        content = read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {fix}") from None
    return parse(content, form, str(path), fix)


def parse(content: str | bytes, form: type[T], where: str, fix: str) -> T:
    """`read` for JSON that was read already. where: the file, or file and line, for messages."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_object_without_repetitions,
        )
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte offset {error.start}; {fix}") from None
    except RecursionError:
        raise UserError(f"{where} is nested more than {DEEPEST} deep; {fix}") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); {fix}") from None
    if _is_deep(value):
        raise UserError(f"{where} is nested more than {DEEPEST} deep; {fix}")
    return check(unseal(value, where, fix), form, where, fix)


def check(value: Any, form: type[T], where: str, fix: str, place: str = "") -> T:
    """The value, if it has this form. Raises UserError if not. place: of the value in the file."""

    def refuse(wanted: str) -> NoReturn:
        raise UserError(f"{where}: {place or 'it'} is {shown(value)}, but must be {wanted}; {fix}")

    def below(part: Any, form: Any, name: str) -> None:
        check(part, form, where, fix, f"{place}{name}" if place else name.removeprefix("."))

    form_: Any = form  # pyright takes every form for a class
    kind, arguments = typing.get_origin(form_) or form_, typing.get_args(form_)
    if kind is Any:
        return value
    if kind is Literal:
        # True is 1 for `in`, but not in JSON.
        if not any(value == a and type(value) is type(a) for a in arguments):
            refuse(f"one of {', '.join(map(str, arguments))}")
    elif kind in (types.UnionType, typing.Union):
        one = [a for a in arguments if isinstance(value, _class(a)) and not _is_bool(value, a)]
        if not one:
            refuse(" or ".join(_WORDS[_class(a, words=True)] for a in arguments))
        check(value, one[0], where, fix, place)
    elif not isinstance(value, _class(kind)) or _is_bool(value, kind):
        refuse(_WORDS[_class(kind, words=True)])
    elif kind is str and not _can_encode(value):
        refuse("a text without half a surrogate pair")
    elif kind is Path and not can_name_a_file(value):
        refuse(_WORDS[kind])
    elif typing.is_typeddict(kind):
        for name, part_form in typing.get_type_hints(kind).items():
            if name in value:
                below(value[name], part_form, f".{name}")
            elif name in form_.__required_keys__:
                raise UserError(f"{where} has no {f'{place}.{name}'.lstrip('.')}; {fix}")
    elif kind is dict and arguments:
        for name, part in value.items():
            below(part, arguments[1], f".{name}")
    elif kind is list and arguments:
        for i, part in enumerate(value):
            below(part, arguments[0], f"[{i}]")
    return value


def shown(value: Any) -> str:
    """A value in an error message: what is long or deep is cut."""
    constants = {None: "null", True: "true", False: "false"}
    is_constant = value is None or isinstance(value, bool)
    return constants[value] if is_constant else reprlib.repr(value)


def _class(form: Any, words: bool = False) -> Any:
    """The classes that isinstance tests for a form. An int may stand for a float."""
    kind = typing.get_origin(form) or form
    if typing.is_typeddict(kind):
        return dict
    tested = {} if words else {float: (int, float), Path: str}
    return tested.get(kind, kind)


def _is_bool(value: Any, form: Any) -> bool:
    """Whether this is true or false in the place of a number; isinstance takes it for an int."""
    return isinstance(value, bool) and form is not bool


def _can_encode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def can_name_a_file(text: str) -> bool:
    """Whether the operating system could have a file of this name."""
    try:
        return b"\0" not in os.fsencode(text)  # a name need not be UTF-8: os.fsdecode shows how
    except UnicodeEncodeError:
        return False


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for outer in level
            if isinstance(outer, dict | list)
            for part in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is too large")
    return number


def _object_without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((repeated, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"one object has the key {shown(repeated)} twice")
    return found

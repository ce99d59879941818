"""checkpoints/STEP/manifest.json: the validation loss, and sizes and checksums of the files.

It is written inside the temporary folder of a checkpoint, so both become valid by one rename.
Checkpoints from before 2026-11-26 have none; they are read without a check.
"""

import os
from pathlib import Path
from typing import NotRequired, TypedDict

from gptjax import checksums, json_files
from gptjax.atomic import write_json
from gptjax.errors import UserError

ITEMS = ("params", "opt_state")
"""What a checkpoint is made of. One that was imported or quantized has no opt_state."""


class _Manifest(TypedDict):
    """The form of manifest.json."""

    val_loss: float | None
    files: dict[str, list[int]]
    step: NotRequired[int]  # absent before 2026-11-27


def write(folder: Path, step: int, val_loss: float | None) -> None:
    """Writes manifest.json of the finished checkpoint of a step in `folder`."""
    files = {
        f"{item}/{name}": listed
        for item in ITEMS
        for name, listed in checksums.list_files(folder / item).items()
    }
    _write(folder, {"step": step, "val_loss": val_loss, "files": files})


def add_val_loss(folder: Path, val_loss: float) -> None:
    """Adds the validation loss to a checkpoint that was saved before its evaluation."""
    content = _read(folder)
    if content and content["val_loss"] is None:
        _write(folder, {**content, "val_loss": val_loss})


def val_loss(folder: Path) -> float | None:
    """The validation loss of the checkpoint in `folder`, None if it was not evaluated.

    Raises LookupError without a readable manifest.
    """
    try:
        content = _read(folder)
    except UserError as error:
        raise LookupError from error
    if content is None:
        raise LookupError
    return content["val_loss"]


def damage(folder: Path, items: tuple[str, ...] = ITEMS) -> str:
    """What is wrong with the checkpoint in `folder`, in words; "" if nothing is known to be.

    items: those to check. Reads their files once.
    """
    if not folder.is_dir():
        return "it is no folder"
    if links := [path.name for path in (folder, *folder.iterdir()) if path.is_symlink()]:
        return f"{links[0]} is a symbolic link"
    if missing := [item for item in items[:1] if not (folder / item).is_dir()]:
        return f"{missing[0]} is missing"
    try:
        content = _read(folder)
    except UserError:
        return "manifest.json is damaged"
    if not content:
        return ""
    # A renamed checkpoint would continue a run at a wrong step, with a wrong learning rate.
    if (step := str(content.get("step", folder.name))) != folder.name:
        return f"it is the checkpoint of step {step}, renamed"
    listed = content["files"]
    return checksums.first_difference(
        folder, {name: listed[name] for name in listed if name.startswith(items)}
    )


def has_opt_state(folder: Path) -> bool:
    """Whether the checkpoint in `folder` was saved with an optimizer state."""
    try:
        content = _read(folder)
    except UserError:
        content = None
    listed = content["files"] if content else ()
    return (folder / "opt_state").exists() or any(name.startswith("opt_state") for name in listed)


def _write(folder: Path, content: _Manifest) -> None:
    write_json(folder / "manifest.json", checksums.seal(dict(content)), indent=None)


def _read(folder: Path) -> _Manifest | None:
    """The content of manifest.json. None if there is none. Raises UserError if it is damaged."""
    path = folder / "manifest.json"
    if not os.path.lexists(path):
        return None
    return json_files.read(path, _Manifest, "restore it from a copy")

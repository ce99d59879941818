"""What a run may change when it is resumed, and whether its data is still the same."""

import dataclasses
from pathlib import Path
from typing import Any

from gptjax import config_json, json_files
from gptjax.atomic import write_json
from gptjax.checksums import seal
from gptjax.config import Config
from gptjax.data.dataset import Data
from gptjax.data.recordings import FileFacts
from gptjax.data.speech import SpeechData
from gptjax.data.tokenizer import BPETokenizer, GPT2Tokenizer, WordTokenizer
from gptjax.errors import UserError
from gptjax.runs import manifest
from gptjax.runs.checkpoints import committed_steps
from gptjax.runs.run_directory import read_config, read_environment, read_tokenizer

# The arrays of a checkpoint depend on these, so a resumed run cannot change them ...
FIXED = ("model", "optim.name", "data", "train.members")
# ... except for these. (A tokenizer and its data are compared by content instead.)
FREE = ("model.dropout", "model.drop_attention", "data.path", "data.name", "data.vocab_size")
FREE += ("model.training_temperature", "data.tokenizer", "data.field", "data.on_broken")
FREE += ("data.speed_change", "data.tempo_change", "data.voice_change", "data.channel_change")
FREE += ("data.noise", "data.spec_masks")

RECORDINGS = "recordings.json"
"""File of a speech run: SpeechData.files of its first start."""


def check_resumable(folder: Path, config: Config, data: Data) -> list[str]:
    """Compares the run in a folder with the settings of now.

    Returns the changes that are allowed, in words: learning rate, dropout, number of steps, ...
    Raises UserError with the changes that are not, and for a run that was imported or quantized.
    """
    saved = [folder / "checkpoints" / str(step) for step in committed_steps(folder)]
    if not any(map(manifest.has_opt_state, saved)):
        raise UserError(
            f"{folder} was imported or quantized: it has no optimizer state, so training cannot "
            "continue it; name another --run-dir (an imported one can be its --train.init-from)"
        )
    had, want = config_json.flatten(read_config(folder)), config_json.flatten(config)
    refused, allowed = [], []
    for field in had | want:
        change = f"{field} {had.get(field, 'none')} -> {want.get(field, 'none')}"
        if had.get(field) == want.get(field):
            continue
        fixed = field not in FREE and any(field == f or field.startswith(f + ".") for f in FIXED)
        (refused if fixed else allowed).append(change)
    if not refused:  # else a different vocabulary may only be a consequence
        had_tokenizer = read_tokenizer(folder)
        if had_tokenizer.to_dict() != data.tokenizer.to_dict():
            sizes = had_tokenizer.vocab_size, data.tokenizer.vocab_size
            refused.append(f"vocabulary of {sizes[0]} tokens -> another of {sizes[1]}")
        other, mended = _data_changes(folder, data)
        refused, allowed = refused + other, allowed + mended
    if refused:
        raise UserError(
            f"{folder} holds a run with different settings, so it cannot be resumed: "
            f"{'; '.join(refused)}; undo that, or start a new run with another --run-dir"
        )
    return allowed


def has_data(folder: Path) -> bool:
    """Whether a run names its training data. An imported one does not."""
    return len(read_environment(folder)["data"]) > 2  # sizes, besides source and sha256


def check_same_data(folder: Path, data: Data) -> None:
    """Raises UserError if this is not the data that the run was trained on."""
    changes, _ = _data_changes(folder, data)
    if changes:
        raise UserError(f"{folder} was trained on other data: {'; '.join(changes)}; restore that")


def remember_recordings(folder: Path, data: Data) -> None:
    """Writes which recordings a new run has. One that continues keeps what its first start had."""
    is_new = not committed_steps(folder) or not (folder / RECORDINGS).exists()
    if isinstance(data, SpeechData) and is_new:
        write_json(folder / RECORDINGS, seal(data.files), indent=None)


def recordings_of(folder: Path) -> dict[str, Any]:
    """{name: content} of the file that says which recordings a run has, for runs made of it."""
    return {RECORDINGS: _read_recordings(folder)} if (folder / RECORDINGS).exists() else {}


def _read_recordings(folder: Path) -> dict[str, FileFacts]:
    """What `remember_recordings` wrote."""
    fix = "restore it; without it, the run compares only a checksum of its data"
    return json_files.read(folder / RECORDINGS, dict[str, FileFacts], fix)


def keep_vocabulary(folder: Path, config: Config, data: Data) -> Data:
    """The data, with the run's own vocabulary if recordings were dropped since it started.

    A vocabulary made from the texts that are left could be another one.
    """
    if not isinstance(data, SpeechData) or not committed_steps(folder):
        return data
    refused, allowed = _data_changes(folder, data)
    had, now = read_config(folder).data, config.data
    is_asked_for = (had.tokenizer, had.vocab_size) == (now.tokenizer, now.vocab_size)
    if refused or not allowed or not is_asked_for:
        return data
    return dataclasses.replace(data, tokenizer=read_tokenizer(folder))


def _data_changes(folder: Path, data: Data) -> tuple[list[str], list[str]]:
    """How the data differs from the data that the run was trained on, in words.

    The first list is of changes that make it other data; the second of those that do not:
    recordings that were dropped or mended.
    """
    if isinstance(data, SpeechData) and (folder / RECORDINGS).exists():
        return _recordings_changes(_read_recordings(folder), data)
    had = read_environment(folder)["data"]
    if had["sha256"] != data.sha256:
        return [f"data sha256 {had['sha256'][:12]} -> {data.sha256[:12]} ({data.source})"], []
    sizes = data.sizes
    if isinstance(data, SpeechData):
        sizes.pop("train_clips")  # generated clips are among them, and only training makes those
    changes = [  # the same text, but split elsewhere into training and validation
        f"{name} {_shown(had.get(name))} -> {size:,} ({data.source})"
        for name, size in sizes.items()
        if had.get(name) != size
    ]
    spans_characters = isinstance(data.tokenizer, WordTokenizer | BPETokenizer | GPT2Tokenizer)
    if changes and spans_characters and not Path(data.source).is_dir():
        changes.append("versions before 2026-11-27 split a text inside a token, this one does not")
    return changes, []


def _recordings_changes(had: dict[str, FileFacts], data: SpeechData) -> tuple[list[str], list[str]]:
    """As _data_changes. had: SpeechData.files of the run's first start."""
    now = {name: facts for name, facts in data.files.items() if facts["bytes"] >= 0}
    both = had.keys() & now.keys()
    groups = {
        "new, or with another text": now.keys() - had.keys(),
        "in another split": {name for name in both if had[name]["split"] != now[name]["split"]},
        "dropped": had.keys() - now.keys(),
        "of another size": {name for name in both if had[name]["bytes"] != now[name]["bytes"]},
    }
    said = []
    for what, names in groups.items():
        shown = ", ".join(name.rpartition(" ")[0] for name in sorted(names)[:3])
        more = ", ..." if len(names) > 3 else ""
        count = "1 recording" if len(names) == 1 else f"{len(names)} recordings"
        said.append([f"{count} {what}: {shown}{more}"] if names else [])
    return said[0] + said[1], said[2] + said[3]


def _shown(size: Any) -> str:
    """A size in environment.json, which may be broken."""
    return f"{size:,}" if isinstance(size, int) else json_files.shown(size)

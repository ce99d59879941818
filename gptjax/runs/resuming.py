"""What a run may change when it is resumed, and whether its data is still the same."""

from pathlib import Path

from gptjax import config_json
from gptjax.config import Config
from gptjax.data.dataset import Data
from gptjax.errors import UserError
from gptjax.runs.checkpoints import committed_steps
from gptjax.runs.run_directory import read_config, read_environment, read_tokenizer

# The arrays of a checkpoint depend on these, so a resumed run cannot change them ...
FIXED = ("model", "optim.name", "data")
# ... except for these. (A tokenizer and its data are compared by content instead.)
FREE = ("model.dropout", "data.path", "data.name", "data.vocab_size", "data.tokenizer")
FREE += ("data.speed_change", "data.noise", "data.spec_masks")


def check_resumable(folder: Path, config: Config, data: Data) -> list[str]:
    """Compares the run in a folder with the settings of now.

    Returns the changes that are allowed, in words: learning rate, dropout, number of steps, ...
    Raises UserError with the changes that are not, and for a run that was imported or quantized.
    """
    if not (folder / "checkpoints" / str(committed_steps(folder)[-1]) / "opt_state").exists():
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
        refused += _data_changes(folder, data)
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
    if changes := _data_changes(folder, data):
        raise UserError(f"{folder} was trained on other data: {'; '.join(changes)}; restore that")


def _data_changes(folder: Path, data: Data) -> list[str]:
    """How the data differs from the data that the run was trained on, in words."""
    had = read_environment(folder)["data"]
    if had["sha256"] != data.sha256:
        return [f"data sha256 {had['sha256'][:12]} -> {data.sha256[:12]} ({data.source})"]
    return [  # the same text, but split elsewhere into training and validation
        f"{name} {had[name]:,} -> {size:,} ({data.source})"
        for name, size in data.sizes.items()
        if had[name] != size
    ]

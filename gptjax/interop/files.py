"""The files of a checkpoint as Hugging Face saves it: safetensors and JSON, never a pickle."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import numpy as np

from gptjax import json_files
from gptjax.config import Config
from gptjax.data.tokenizer import Tokenizer
from gptjax.errors import UserError, import_extra

T = TypeVar("T")

NEEDS = "gptjax import needs"
N_NAMED = 3
"""Tensors that an error names. It counts the others."""


class Imported(NamedTuple):
    """A checkpoint of another library as the parts of a run."""

    config: Config
    tokenizer: Tokenizer
    params: Any
    sha256: str
    """Of the files with the weights."""


class _Index(TypedDict):
    """The form of model.safetensors.index.json: the file of every tensor."""

    weight_map: dict[str, str]


class Tensors:
    """The tensors in a folder's safetensors files. Each is read when it is taken.

    `shapes` holds those that are not yet taken. The ExitStack closes the files. Raises UserError
    for a folder without such files, and for a file that is missing or broken.
    """

    def __init__(self, folder: Path, stack: ExitStack):
        safetensors = import_extra("safetensors", NEEDS)
        index = folder / "model.safetensors.index.json"
        if (folder / "model.safetensors").is_file():
            names = ["model.safetensors"]
        elif index.is_file():
            shards = read_json(index, _Index)["weight_map"]
            # Only the file name, so that the index cannot point outside the folder.
            names = sorted({Path(name).name for name in shards.values()} - {""})
            if not names:
                raise UserError(f"{index} names no file; name a folder that Hugging Face saved")
        elif any(folder.glob("pytorch_model*.bin")):
            raise UserError(
                f"{folder} has pickled weights, which can run any code; save it again with "
                "model.save_pretrained(folder, safe_serialization=True)"
            )
        else:
            raise UserError(f"{folder} has no model.safetensors; name a folder that has one")
        self.files = [folder / name for name in names]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Any] = {}
        for path in self.files:
            try:
                # The numpy reader of safetensors cannot read bfloat16, the JAX reader can.
                file = stack.enter_context(safetensors.safe_open(path, framework="flax"))
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"{path} cannot be read ({error}); fetch it again") from None
            for name in file.keys():  # noqa: SIM118 - no dict
                if name in self._file_of:
                    raise UserError(f"{path} and another file both have {name}; remove one")
                self._file_of[name] = file
                self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def drop(self, is_dropped: Callable[[str], bool]) -> None:
        """Ignores the tensors with such names."""
        self.shapes = {name: s for name, s in self.shapes.items() if not is_dropped(name)}

    def take(self, name: str) -> np.ndarray:
        """A tensor as float32. Each tensor can be taken once.

        Raises UserError for numbers that are not finite, or not floating-point.
        """
        del self.shapes[name]
        file = self._file_of[name]
        kind = file.get_slice(name).get_dtype()
        if kind not in ("F64", "F32", "F16", "BF16"):
            raise UserError(f"{self.files[0]}: {name} is {kind}, but must be F32, F16 or BF16")
        array = np.asarray(file.get_tensor(name)).astype(np.float32)
        if n_bad := array.size - np.count_nonzero(np.isfinite(array)):
            raise UserError(
                f"{self.files[0]}: {n_bad:,} of the {array.size:,} numbers of {name} are NaN or "
                "infinite; fetch the checkpoint again, or ask where it was trained"
            )
        return array

    def take_copy(self, name: str, original: str, array: np.ndarray) -> None:
        """Takes a tensor that must equal `array`, which is the tensor `original`."""
        if not np.array_equal(self.take(name), array):
            raise UserError(f"{self.files[0]}: {name} is not {original}, but config.json ties them")

    def is_bfloat16(self, name: str) -> bool:
        return self._file_of[name].get_slice(name).get_dtype() == "BF16"

    def check_names(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Raises UserError for tensors that are missing, unknown or of another shape."""
        found = self.shapes
        missing = [name for name in expected if name not in found]
        unknown = [name for name in found if name not in expected]
        other = [f"{n} {found[n]} for {s}" for n, s in expected.items() if found.get(n, s) != s]
        faults = (("missing", missing), ("unknown", unknown), ("of another shape", other))
        if wrong := [f"{what}: {_some(names)}" for what, names in faults if names]:
            raise UserError(f"{self.files[0]} does not fit its config.json; {'; '.join(wrong)}")

    def sha256(self) -> str:
        """Hex digest of all files, in order."""
        digest = hashlib.sha256()
        for path in self.files:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def read_json(path: Path, form: type[T] = dict[str, Any]) -> T:
    """A JSON file. Raises UserError for a file that is missing or holds something else."""
    return json_files.read(path, form, "name a folder that Hugging Face saved")


class TheirConfig:
    """A config.json of Hugging Face. Every check raises UserError that names the value."""

    def __init__(self, path: Path):
        self.path = path
        self._fields = read_json(path)

    def get(self, name: str, default: Any) -> Any:
        return self._fields.get(name, default)

    def require(self, name: str, value: Any, default: Any = None) -> None:
        """Refuses any other value. A missing field has the default."""
        self.one_of(name, (value,), default)

    def one_of(self, name: str, values: tuple[Any, ...], default: Any = None) -> Any:
        """A field that must have one of these values. A missing field has the default."""
        value = self._fields.get(name, default)
        if value not in values or isinstance(value, bool) != isinstance(values[0], bool):
            known = " or ".join(map(repr, values))
            raise UserError(f"{self.path}: {name} is {value!r}, but only {known} can be imported")
        return value

    def number(self, name: str) -> int:
        """A field that must be a positive integer, and a size that an array can have."""
        value = self._fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 31:
            raise UserError(
                f"{self.path}: {name} is {value!r}, but must be a positive integer below 2**31"
            )
        return value


def write_safetensors(path: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays by name, with the metadata that transformers requires."""
    numpy = import_extra("safetensors.numpy", "--to hf and --to safetensors need")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    path.write_bytes(numpy.save(contiguous, {"format": "pt"}))


def _some(names: Sequence[str]) -> str:
    more = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {more} more" if more > 0 else "")

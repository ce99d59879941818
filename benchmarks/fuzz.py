"""The fuzz drill: random input of every kind that gptjax reads. It is used, or refused in one line.

A case is (kind, number). A worker process makes its input from that alone, so a failure can be
repeated: `python -m benchmarks.fuzz KIND NUMBER`.
"""

import copy
import dataclasses
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drill_children import Guarded, called, is_one_line
from gptjax import command_line, config, config_json, train
from gptjax.commands import evaluate, export, import_model, prepare, quantize
from gptjax.commands import sample as sample_command
from gptjax.config_encoders import EncoderDecoderConfig, PairsDataConfig, SpeechDataConfig
from gptjax.data import audio, pairs, recordings
from gptjax.errors import exit_codes

SECONDS = 60
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30),
    *(
        0.0,
        -0.0,
        0.5,
        1e-300,
        1e308,
        -1e308,
        "",
        "x",
        "\x00",
        "\ud800",
        "é\u2028\U0001f600",
        "../..",
    ),
    *("/dev/zero", "x" * 5000, [], {}, [[]], {"": {}}, [None], {"type": "GPTConfig"}, ["a", 1]),
)
"""Values that a JSON file or an option may get."""
WORDS = (
    *(
        "",
        "-1",
        "0",
        "1",
        "3",
        "1e9",
        "1e-300",
        "nan",
        "inf",
        "-inf",
        "1.5",
        "99999999999999999999",
    ),
    *(
        "None",
        "True",
        "false",
        "gpt",
        "bpe",
        "no/such/file",
        "/dev/zero",
        "/dev/null",
        ".",
        "é",
        "\x01",
    ),
    *(
        "text.txt",
        "run",
        "--",
        "-",
        "x" * 3000,
        "a=b",
        "[1,2]",
        "2147483647",
        "1000000000",
        "\udc80",
    ),
)
NUMBERS = ("0", "-1", "1", "2", "7", "33", "10000", "100000000", "1000000000", "2147483647",
    "4294967296", "9223372036854775807", "9223372036854775808", "0.5", "1e-38", "1e9")  # fmt: skip


def fuzz(bench: Any, n: int) -> dict[str, Any]:
    """n cases, of the kinds in turn."""
    from benchmarks.drills import record

    workplace = Workplace(bench.folder / "fuzz", bench.whole, bench.config)
    worker = Guarded(workplace.case, bench.folder)
    failures, outcomes = [], {kind: Counter[str]() for kind in KINDS}
    try:
        for i in range(n):
            kind = list(KINDS)[i % len(KINDS)]
            code, _, said = worker.call((kind, i), SECONDS)
            outcome = "used" if code == 0 else "one line" if code in (1, 2) else "failed"
            is_box = "Perhaps you meant" in said or "Arguments similar to" in said  # of tyro
            if (
                code in (1, 2)
                and not is_one_line(said)
                and not (is_box and "Traceback" not in said)
            ):
                outcome = "failed"
            outcomes[kind][outcome] += 1
            if outcome == "failed":
                failures.append(f"{kind} {i}: exit code {code}: {said[-500:]}")
    finally:
        worker.close()
    return record(n, failures, outcomes={kind: dict(found) for kind, found in outcomes.items()})


class Workplace:
    """A folder with good input of every kind, and what makes bad input of it."""

    def __init__(self, folder: Path, run: Path, tiny: Path):
        self.folder, self.tiny = folder, tiny
        folder.mkdir()
        shutil.copytree(run, folder / "run")
        for path in folder.glob("run/*.json"):  # a checksum would refuse whatever is changed
            content = json.loads(path.read_text())
            content.pop("crc32", None)
            path.write_text(json.dumps(content))
        self.text = folder / "text.txt"
        self.text.write_text("abcdefgh \n" * 100)
        self.tsv = "".join(f"{word}\t{word[::-1]}\n" for word in map(str, range(100, 160)))
        _hugging_face(folder / "hf")
        _wav(folder / "good.wav")

    def case(self, case: tuple[str, int]) -> tuple[int, str, str]:
        kind, number = case
        os.chdir(self.folder)
        limit = _virtual_memory() + (6 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        rng = random.Random(f"{kind} {number}")
        return KINDS[kind](self, rng)

    def command(self, rng: random.Random) -> tuple[int, str, str]:
        name = rng.choice(["train", "train", "train", *_MAINS])
        argv = [_option(rng) if rng.random() < 0.9 else rng.choice(WORDS) for _ in range(6)]
        argv = argv[: rng.randrange(1, 4)]
        if rng.random() < 0.05:
            return self._train(rng)
        if name in ("sample", "evaluate") and rng.random() < 0.8:
            argv = ["run", *argv]
        if name == "sample":
            argv += ["--max-new-tokens", "4"]
        if name == "train":
            if rng.random() < 0.9:
                argv = ["--config", "run.py", *argv]
                (self.folder / "run.py").write_text(_config_file(random.Random(0), 0))
            return called(lambda: _with_codes(lambda: command_line.parse(argv)))
        return called(lambda: _MAINS[name](argv))

    def _train(self, rng: random.Random) -> tuple[int, str, str]:
        """One step of a tiny run, with one option of an extreme value."""
        fields = config_json.flatten(config.Config())
        name = rng.choice([n for n in fields if "." in n and n != "train.max_steps"])
        is_number = type(fields[name]) in (int, float)
        value = rng.choice(NUMBERS if is_number and rng.random() < 0.8 else WORDS)
        option = f"--{name.replace('_', '-')}={value}"
        shutil.rmtree(self.folder / "trained", ignore_errors=True)
        argv = ["--config", str(self.tiny), "--run-dir", "trained", "--train.max-steps", "1"]
        return called(lambda: train.main([*argv, option]))

    def config(self, rng: random.Random) -> tuple[int, str, str]:
        path = self.folder / "fuzzed.py"
        path.write_text(_config_file(rng, rng.randrange(1, 4)), errors="surrogatepass")
        return called(lambda: _with_codes(lambda: command_line.parse(["--config", str(path)])))

    def config_json(self, rng: random.Random) -> tuple[int, str, str]:
        return self._run_with("config.json", rng)

    def tokenizer_json(self, rng: random.Random) -> tuple[int, str, str]:
        return self._run_with("tokenizer.json", rng)

    def _run_with(self, name: str, rng: random.Random) -> tuple[int, str, str]:
        path = self.folder / "run" / name
        good = path.read_bytes()
        path.write_bytes(_mutated_json(good, rng))
        try:
            flags = ["--max-new-tokens", "4", "--greedy"]
            return called(lambda: sample_command.main([str(path.parent), *flags]))
        finally:
            path.write_bytes(good)

    def safetensors(self, rng: random.Random) -> tuple[int, str, str]:
        path = self.folder / "hf/model.safetensors"
        good = path.read_bytes()
        size = struct.unpack("<Q", good[:8])[0]
        header, rest = good[8 : 8 + size], good[8 + size :]
        if rng.random() < 0.5:
            header = _mutated_json(header, rng)
        length = len(header) if rng.random() < 0.8 else rng.getrandbits(rng.choice([8, 20, 40, 64]))
        path.write_bytes(struct.pack("<Q", length) + header + rest[: rng.choice([None, 100, 0])])
        try:
            return called(lambda: self._import())
        finally:
            path.write_bytes(good)

    def hf_json(self, rng: random.Random) -> tuple[int, str, str]:
        path = self.folder / "hf" / rng.choice(["config.json", "tokenizer.json"])
        good = path.read_bytes()
        path.write_bytes(_mutated_json(good, rng))
        try:
            return called(lambda: self._import())
        finally:
            path.write_bytes(good)

    def _import(self) -> None:
        shutil.rmtree(self.folder / "imported", ignore_errors=True)
        import_model.main(["gpt2", "hf", "--out", "imported"])

    def wav(self, rng: random.Random) -> tuple[int, str, str]:
        content = bytearray((self.folder / "good.wav").read_bytes())
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(44)
            content[at : at + 1] = rng.randbytes(rng.choice([1, 1, 1, 2, 4]))
        path = self.folder / rng.choice(["bad.wav", "bad.flac", "bad"])
        path.write_bytes(content[: rng.choice([None, rng.randrange(len(content))])])
        return called(lambda: _with_codes(lambda: (audio.read(path), audio.duration(path))))

    def table(self, rng: random.Random) -> tuple[int, str, str]:
        path = self.folder / rng.choice(["bad.tsv", "bad.dict"])
        good = self.tsv if path.suffix == ".tsv" else self.tsv.replace("\t", "  ")
        path.write_bytes(_mutated_bytes(good.encode(), rng))
        data = PairsDataConfig(path=path, tokenizer=rng.choice(["char", "word", "byte", "bpe"]))
        model = EncoderDecoderConfig(n_layer=1, n_head=2, n_embd=16, n_encoder_layer=1)
        return called(lambda: _with_codes(lambda: pairs.load(config.Config(model, data))))

    def manifest(self, rng: random.Random) -> tuple[int, str, str]:
        row = {"audio": "good.wav", "text": "one", "speaker": "a", "split": "train"}
        lines = [_mutated_json(json.dumps(row).encode(), rng) for _ in range(rng.randrange(1, 3))]
        content = b"\n".join(lines)
        path = self.folder / "bad.jsonl"
        path.write_bytes(_mutated_bytes(content, rng) if rng.random() < 0.2 else content)
        missing = rng.random() < 0.5
        return called(lambda: _with_codes(lambda: _clips(path, missing)))


KINDS: dict[str, Callable[[Workplace, random.Random], tuple[int, str, str]]] = {
    "command line": Workplace.command,
    "config file": Workplace.config,
    "config.json": Workplace.config_json,
    "tokenizer.json": Workplace.tokenizer_json,
    "safetensors header": Workplace.safetensors,
    "Hugging Face JSON": Workplace.hf_json,
    "WAV header": Workplace.wav,
    "table of pairs": Workplace.table,
    "manifest": Workplace.manifest,
}
_MAINS: dict[str, Callable[[list[str]], None]] = {
    "sample": sample_command.main,
    "evaluate": evaluate.main,
    "export": export.main,
    "quantize": quantize.main,
    "import": import_model.main,
    "prepare": prepare.main,
}


def _with_codes(function: Callable[[], object]) -> None:
    with exit_codes():
        function()


def _clips(path: Path, may_be_missing: bool) -> None:
    clips = recordings.find_clips(path, may_be_missing)
    parts = recordings.split(clips, 0.1, "", "here", path.parent)
    [recordings.key(clip, path.parent) for part in parts for clip in part]


def _option(rng: random.Random) -> str:
    names = [name.replace("_", "-") for name in config_json.flatten(config.Config())]
    names += ["run-dir", "resume", "prompt", "step", "beam", "out", "bits", "max-new-tokens"]
    names += ["num-samples", "top-k", "temperature", "split", "json", "help", "confg", "model"]
    name = rng.choice(names)
    return f"--{name}={rng.choice(WORDS)}" if rng.random() < 0.8 else f"--{name}"


def _config_file(rng: random.Random, n_changes: int) -> str:
    """A config file with n_changes fields of a random value."""
    sections: dict[str, Any] = {
        "model": rng.choice([config.GPTConfig, config.BigramConfig, EncoderDecoderConfig]),
        "data": rng.choice([config.TextDataConfig, PairsDataConfig, SpeechDataConfig]),
        "optim": config.OptimConfig,
        "mesh": config.MeshConfig,
        "train": config.TrainConfig,
    }
    if not n_changes:
        sections |= {"model": config.GPTConfig, "data": config.TextDataConfig}
    elif rng.random() < 0.9:
        sections["data"] = config_json.DATA_OF_MODEL[sections["model"]]
    changes: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for _ in range(n_changes):
        name = rng.choice(list(sections))
        field = rng.choice([f.name for f in dataclasses.fields(sections[name])])
        changes[name][field] = _junk(rng) if rng.random() < 0.5 else _number(rng)
    lines = [
        "from gptjax.config import *",
        "from gptjax.config_encoders import *",
        "config = Config(",
    ]
    for name, cls in sections.items():
        fields = ", ".join(f"{field}={value!r}" for field, value in changes[name].items())
        lines.append(f"    {name}={cls.__name__}({fields}),")
    text = "\n".join([*lines, ")"]) + "\n"
    if n_changes and rng.random() < 0.2:
        return _mutated_bytes(text.encode(), rng).decode(errors="surrogateescape")
    return text


def _junk(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(JUNK))  # which the caller may change


def _number(rng: random.Random) -> int | float:
    return rng.choice([rng.randrange(20), rng.randrange(-3, 1 << 20), 10 ** rng.uniform(-9, 12)])


def _other(value: Any, rng: random.Random) -> Any:
    """Half of the time a value of the same kind."""
    if rng.random() < 0.5:
        return _junk(rng)
    if isinstance(value, int | float):
        return rng.choice([value + 1, value - 1, -value, value * 10, _number(rng)])
    if isinstance(value, str):
        return rng.choice([value[:-1], value + "x", value.upper(), *WORDS])
    if isinstance(value, list):
        return rng.choice([value[1:], value * 2, value[::-1], [value]])
    return _junk(rng)


def _mutated_json(good: bytes, rng: random.Random) -> bytes:
    """JSON with some values, keys or bytes changed."""
    if rng.random() < 0.1:
        return _mutated_bytes(good, rng)
    root = [json.loads(good)]
    for _ in range(rng.choice([1, 1, 1, 3])):
        parent: Any = root
        key: Any = 0
        while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.95:
            parent = parent[key]
            key = (
                rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
            )
        action = rng.random()
        if action < 0.8 or parent is root:
            parent[key] = _other(parent[key], rng)
        elif action < 0.9:
            del parent[key]
        elif isinstance(parent, dict):
            parent[str(_junk(rng))[:50]] = _junk(rng)
    text = json.dumps(root[0])
    if rng.random() < 0.05:
        depth = rng.choice([50, 500, 100_000])
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    if rng.random() < 0.05:
        text = text.replace("true", "NaN", 1).replace("0", "1e999", 1)
    return text.encode()


def _mutated_bytes(good: bytes, rng: random.Random) -> bytes:
    content = bytearray(good)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            del content[at : at + rng.choice([1, 5, len(content)])]
        elif kind == 1:
            new = rng.randbytes(rng.choice([1, 4, 100]))
            content[at:at] = new if rng.random() < 0.5 else bytes(byte & 127 for byte in new)
        elif kind == 2:
            content[at:at] = rng.choice([b"\t", b"\n", b"\r", b"\0", b" ", "\u2028".encode()])
        elif kind == 3:
            content[at:at] = content[: rng.choice([10, 1000])] * rng.choice([1, 3, 100])
        elif content:
            content[min(at, len(content) - 1)] ^= 1 << rng.randrange(8)
    return bytes(content)


def _hugging_face(folder: Path) -> None:
    """A GPT-2 of one layer, as Hugging Face saves it."""
    import tokenizers
    from safetensors.numpy import save_file

    folder.mkdir()
    width, vocab_size = 8, 260
    theirs = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": width}
    theirs |= {"n_positions": 8, "vocab_size": vocab_size, "activation_function": "gelu_new"}
    (folder / "config.json").write_text(json.dumps(theirs))
    shapes = {"wte.weight": (vocab_size, width), "wpe.weight": (8, width)}
    for name, shape in {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }.items():
        shapes |= {f"h.0.{name}.weight": shape, f"h.0.{name}.bias": shape[1:]}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))


def _wav(path: Path) -> None:
    samples = (np.sin(np.arange(1600) / 5) * 9000).astype("<i2").tobytes()
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1,
        1, 16000, 32000, 2, 16, b"data", len(samples))  # fmt: skip
    path.write_bytes(header + samples)


def _virtual_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(argv: list[str]) -> None:
    """One case again, with all that it prints."""
    from benchmarks.drills import Bench

    folder = Path(tempfile.mkdtemp())
    try:
        bench = Bench(folder, 0)
        print(Workplace(folder / "fuzz", bench.whole, bench.config).case((argv[0], int(argv[1]))))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])

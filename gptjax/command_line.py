"""From a command line to a configuration: load the file, apply overrides, check every value.

`--config configs/gpt.py` runs a Python file that defines `config = Config(...)`; tyro knows all
fields of that as options. Whatever is wrong becomes a UserError of one line.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import math
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from gptjax.config import Config, GPTConfig
from gptjax.config_encoders import (
    EncoderDecoderConfig,
    PairsDataConfig,
    SpeechConfig,
    SpeechDataConfig,
)
from gptjax.config_json import DATA_OF_MODEL, flatten
from gptjax.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """One start of a run: where it is and who takes part. The run does not remember these."""

    run_dir: Path | None = None
    """The run directory; default runs/NAME of the config file. A run found there is continued."""
    resume: bool = False
    """Refuse to start a new run: there must be a checkpoint to continue from."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra: tensorboard)."""
    wandb: bool = False
    """Also log to Weights & Biases (extra: wandb)."""
    coordinator: str = ""
    """HOST:PORT of process 0 of several. Slurm, Open MPI and Kubernetes provide it."""
    processes: int = 0
    """Number of processes. 0: one, or as many as the cluster starts."""
    process: int = -1
    """Index of this process, from 0. -1: as the cluster says."""

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the optional trackers to log to."""
        return ("tensorboard",) * self.tensorboard + ("wandb",) * self.wandb

    @property
    def folder(self) -> Path:
        """The run directory. Raises UserError if there is none."""
        if self.run_dir is None:
            raise UserError("--run-dir is missing; name a folder for the run")
        return self.run_dir


@dataclass(frozen=True)
class _CommandLine:
    """Train a model, or continue a run that was stopped."""

    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    launch: Annotated[Launch, tyro.conf.arg(name="")] = field(default_factory=Launch)


def parse(argv: list[str]) -> tuple[Config, Launch]:
    """What to train and how to start it, from a command line of `gptjax train`.

    Raises UserError for a missing or broken config file, an unknown option (with the nearest one)
    and a value of the wrong type or range. Prints help and exits on -h / --help.
    """
    path, overrides = _split_config_flag(argv)
    if path is None and not {"-h", "--help"} & set(overrides):
        near = ", ".join(sorted(map(str, Path("configs").glob("*.py"))))
        raise UserError(f"--config FILE is missing; there are {near or 'none in configs/'}")
    default = _CommandLine()
    if path:
        default = _CommandLine(load_file(path), Launch(Path("runs") / path.stem))
    found = parse_command(_CommandLine, overrides, "train.py --config FILE", default)
    config, launch = found.config, found.launch
    check(config)
    check_launch(launch)
    if config.data.path:  # later commands may use the run from another folder
        data = dataclasses.replace(config.data, path=config.data.path.absolute())
        config = dataclasses.replace(config, data=data)
    return config, launch


def parse_command(cls: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Fills a dataclass from a command line with tyro; any error becomes a UserError."""
    errors = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    markers = (tyro.conf.AvoidSubcommands,)
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(cls, args=argv, prog=prog, config=markers, **given)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(errors.getvalue())) from None


def load_file(path: Path) -> Config:
    """Runs a config file and returns its `config`; raises UserError if there is none."""
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        near = ", ".join(sorted(str(p) for p in folder.glob("*.py"))) or "none"
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"--config {path} {what}; config files there: {near}")
    spec = importlib.util.spec_from_file_location(f"gptjax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config {path} is not a Python file; see configs/gpt.py for one")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises is theirs to fix
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        names = [knob.rpartition(".")[2] for knob in flatten(Config())]
        near = difflib.get_close_matches(unknown[1], names, 1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--config {path} fails with {type(error).__name__}: {error}{hint}"
        ) from None
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise UserError(f"--config {path} must define `config = Config(...)`; see configs/gpt.py")
    try:
        _check_types(config)
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None
    return config


def require(ok: bool, flag: str, value: Any, rule: str) -> None:
    """Raises UserError that names an option, its value and the rule it must obey, unless ok."""
    if not ok:
        raise UserError(f"--{flag} is {value}, but must be {rule}")


def check(config: Config) -> None:
    """Raises UserError for the first value that cannot work, naming it and the fix."""
    model, optim, train = config.model, config.optim, config.train
    is_encoder_decoder = isinstance(model, EncoderDecoderConfig)
    is_speech = isinstance(model, SpeechConfig)

    wanted = DATA_OF_MODEL.get(type(model))
    if wanted is None:
        kinds = ", ".join(cls.__name__ for cls in DATA_OF_MODEL)
        raise UserError(f"model is a {type(model).__name__}, but must be one of {kinds}")
    if type(config.data) is not wanted:
        raise UserError(
            f"a {type(model).__name__} needs data={wanted.__name__}(...), but this config has "
            f"{type(config.data).__name__}"
        )
    positive = {"model": ("block_size",), "train": ("max_steps", "batch_size")}
    positive["train"] += ("eval_interval", "log_interval")
    if isinstance(model, GPTConfig):
        positive["model"] += ("n_layer", "n_head", "n_embd")
        if is_encoder_decoder:
            positive["model"] += ("n_encoder_layer", "source_block_size")
            assert isinstance(config.data, PairsDataConfig)
            kind, source_kind = config.data.tokenizer, config.data.source_tokenizer
            alike = not model.share_embeddings or source_kind == kind
            one = f"{kind}, as --data.tokenizer, for --model.share-embeddings"
            require(alike, "data.source-tokenizer", source_kind, one)
        if is_speech:
            positive["model"] += ("n_encoder_layer", "source_block_size", "n_mels")
        require(0 <= model.dropout < 1, "model.dropout", model.dropout, "in [0, 1)")
        fits = model.short_conv == 0 or model.short_conv >= 2
        require(fits, "model.short-conv", model.short_conv, "0, or at least 2")
        require(model.logit_softcap >= 0, "model.logit-softcap", model.logit_softcap, ">= 0")
    for section, names in positive.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            require(value >= 1, f"{section}.{name}".replace("_", "-"), value, "at least 1")
    if isinstance(model, GPTConfig):
        if model.n_embd % model.n_head:
            fits = [h for h in range(1, model.n_embd + 1) if model.n_embd % h == 0]
            near = min(fits, key=lambda h: abs(h - model.n_head))
            raise UserError(
                f"--model.n-embd {model.n_embd} is not divisible by --model.n-head "
                f"{model.n_head}; {near} heads would fit"
            )
        even = model.position != "rotary" or model.n_embd // model.n_head % 2 == 0
        width = f"{model.n_embd}/{model.n_head}"
        require(even, "model.n-embd / n-head", width, "even for rotary positions")
    mesh = config.mesh
    for name in ("data", "fsdp", "model"):
        size = getattr(mesh, name)
        require(size >= 1 or size == -1, f"mesh.{name}", size, "at least 1, or -1 for what is left")
    if [mesh.data, mesh.fsdp, mesh.model].count(-1) > 1:
        sizes = f"{mesh.data} x {mesh.fsdp} x {mesh.model}"
        raise UserError(f"--mesh.data x fsdp x model is {sizes}, but only one of them can be -1")
    micro = train.micro_batch_size
    divides = micro >= 0 and (micro == 0 or train.batch_size % micro == 0)
    require(divides, "train.micro-batch-size", micro, f"a divisor of {train.batch_size}, or 0")
    require(train.eval_batches >= 0, "train.eval-batches", train.eval_batches, ">= 0")
    require(train.sample_tokens >= 0, "train.sample-tokens", train.sample_tokens, ">= 0")
    for name in ("learning_rate", "muon_learning_rate"):
        rate = getattr(optim, name)
        require(0 < rate < math.inf, f"optim.{name}".replace("_", "-"), rate, "> 0 and finite")
    require(0 <= optim.beta2 < 1, "optim.beta2", optim.beta2, "in [0, 1)")
    fraction = optim.final_fraction
    require(0 <= fraction <= 1, "optim.final-fraction", fraction, "in [0, 1]")
    for name in ("warmup_steps", "weight_decay", "grad_clip"):
        value = getattr(optim, name)
        require(0 <= value < math.inf, f"optim.{name}".replace("_", "-"), value, ">= 0")
    require(
        0 < optim.decay_fraction <= 1, "optim.decay-fraction", optim.decay_fraction, "in (0, 1]"
    )
    # Of pairs, as many are held out for test.
    held_out_twice = is_encoder_decoder or is_speech
    most, rule = (0.5, "in (0, 0.5)") if held_out_twice else (1, "in (0, 1)")
    fraction = config.data.val_fraction
    require(0 < fraction < most, "data.val-fraction", fraction, rule)
    if isinstance(config.data, SpeechDataConfig):
        for name in ("speed_change", "noise"):
            value = getattr(config.data, name)
            require(0 <= value <= 0.9, f"data.{name}".replace("_", "-"), value, "in [0, 0.9]")
        for name, least in (("string_clips", 1), ("synthetic_clips", 1), ("spec_masks", 0)):
            value = getattr(config.data, name)
            require(value >= least, f"data.{name}".replace("_", "-"), value, f"at least {least}")
    require(0 <= config.seed < 2**32, "seed", config.seed, "in [0, 2**32)")


def check_launch(launch: Launch) -> None:
    """Raises UserError for a launch of several processes that is incomplete or inconsistent."""
    explicit = [bool(launch.coordinator), launch.processes > 0, launch.process >= 0]
    if any(explicit) and not all(explicit):
        raise UserError(
            "--coordinator, --processes and --process go together: HOST:PORT, how "
            "many processes there are, and which of them this is"
        )
    if all(explicit):
        is_address = re.fullmatch(r".+:\d{1,5}", launch.coordinator)
        require(bool(is_address), "coordinator", launch.coordinator, "HOST:PORT")
        in_range = launch.process < launch.processes
        require(in_range, "process", launch.process, f"in [0, {launch.processes})")


def _check_types(section: Any, prefix: str = "") -> None:
    """Raises UserError for a field whose value is not of its type: Python itself does not ask."""
    for name, hint in typing.get_type_hints(type(section)).items():
        value = getattr(section, name)
        flag = f"--{prefix}{name}".replace("_", "-")
        choices = typing.get_args(hint)
        if typing.get_origin(hint) is Literal:
            fits, wanted = value in choices, f"one of {', '.join(choices)}"
        else:
            # bool is an int to isinstance, and an int will do for a float.
            classes = choices or ((int, float) if hint is float else (hint,))
            fits = isinstance(value, classes) and (hint is bool or not isinstance(value, bool))
            wanted = " or ".join(cls.__name__ for cls in choices or (hint,))
        if not fits:
            # Of a section in another's place its fields would be too much to read.
            shown = type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
            raise UserError(f"{flag} is {shown}, but must be {wanted}")
        if dataclasses.is_dataclass(value):
            _check_types(value, f"{prefix}{name}.")


def _split_config_flag(argv: list[str]) -> tuple[Path | None, list[str]]:
    """Takes `--config FILE` or `--config=FILE` out of a command line."""
    rest, path = [], None
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
            continue
        value = value if equals else next(arguments, "")
        if not value:
            raise UserError("--config needs a file, for example --config configs/gpt_cpu.py")
        path = Path(value)
    return path, rest


def _one_line(boxed: str) -> str:
    """tyro draws its errors as a box; this keeps the words, up to the hint at --help."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    # Below the title. Without UTF-8 on stdout, the box has no sides and its lines are of hyphens.
    lines = [line.strip(" │╰─╯") for line in plain.splitlines()[1:]]
    inside = " ".join(line for line in lines if line.strip("-"))
    text = re.split(r"For full helptext|Argument helptext|\(default:", inside)[0]
    return f"{' '.join(text.split())} (--help lists every option)"

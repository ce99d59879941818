"""gptjax evaluate: the error rates or the loss of a trained run on data it was not trained on."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import tyro

from gptjax import evaluation, models
from gptjax.command_line import parse_command, refuse_options
from gptjax.config import Config, TextDataConfig
from gptjax.config_encoders import SpeechConfig
from gptjax.data import dataset as data
from gptjax.data import recordings
from gptjax.data.pairs import PairData
from gptjax.data.recordings import Clip, Example
from gptjax.data.speech import SpeechData
from gptjax.data.tokenizer import SpeechTokenizer, Tokenizer
from gptjax.decoding import beam_search, error_rates, transcription
from gptjax.errors import UserError, exit_codes
from gptjax.runs import checkpoints, init_from, resuming, run_directory
from gptjax.scale import compilation, devices

CLIPS_IN_MEMORY = 256
"""Clips that are read and transcribed at a time."""


@dataclass(frozen=True)
class OtherData:
    """Data that the run was not trained on."""

    path: Path | None = None
    """Speech only: a folder or manifest; all of its clips are test clips."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained run on its validation or test split.

    A run on text has a loss, in nats per token. A run on pairs has a word error rate (sources whose
    output equals none of the listed targets) and a phoneme error rate (errors per token of the
    nearest target). A run on speech has word and character error rates.

    examples:
        gptjax evaluate runs/gpt_cpu
        gptjax evaluate runs/g2p_cpu --split val --beam 4 --json
        gptjax evaluate runs/digits_cpu --data.path my_recordings/
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    split: Literal["val", "test"] = "test"
    """Split of pairs or speech. A text has only val."""
    beam: int = 1
    """Hypotheses that beam search keeps. 1 is greedy."""
    length_penalty: float = 1.0
    """Hypotheses are ranked by log-probability / length ** this."""
    step: str = "best"
    """Which checkpoint: best, latest or a step."""
    json: bool = False
    """Print one JSON object."""
    data: OtherData = field(default_factory=OtherData)


def main(argv: list[str]) -> None:
    with exit_codes():
        command = parse_command(Evaluate, argv, "gptjax evaluate")
        record = evaluate(command)
        print(json.dumps(record, ensure_ascii=False) if command.json else report(record))


def evaluate(command: Evaluate) -> dict[str, Any]:
    """The measurements of a run, as --json prints them.

    Raises UserError if the folder is no run, if its data is missing or has changed, or if an option
    does not fit the run.
    """
    devices.require_backend()
    compilation.use_cache()
    beam_search.check(command.beam, command.length_penalty)
    config = run_directory.read_config(command.run)
    if isinstance(config.model, SpeechConfig):
        return _evaluate_speech(command, config)
    if command.data.path:
        raise UserError(f"--data.path is for speech, which {command.run} is not; leave it out")
    if isinstance(config.data, TextDataConfig):
        why = "continues a text, so it has a loss and no error rates; leave it out"
        refuse_options(command, ("beam", "length_penalty"), why)
    dataset = data.load(config, init_from.vocabulary(config, command.run), to_train=False)
    resuming.check_same_data(command.run, dataset)
    model, params, record = _load_model(command, config, dataset.tokenizer)
    if not isinstance(dataset, PairData):
        batch_size = devices.micro_batch_size(
            config.train, config.model, dataset.tokens_per_sequence(config)
        )
        mean_loss = evaluation.make_evaluate(model)
        return {**record, "val_loss": mean_loss(params, dataset.validation(config, batch_size))}

    pairs = dataset.test if command.split == "test" else dataset.val
    if not pairs:
        raise UserError(f"{command.run} has no pairs in its {command.split} split")
    error_rates.require_jiwer()  # before the work, not after it
    tok, target = dataset.tokenizer, dataset.tokenizer.target
    found = beam_search.transduce(
        model, params, tok, list(pairs), command.beam, command.length_penalty
    )
    references, hypotheses = {}, {}
    for (source, targets), best in zip(pairs.items(), found, strict=True):
        references[source] = [error_rates.separate_tokens(target, text) for text in targets]
        hypotheses[source] = error_rates.separate_tokens(target, best[0].text)
    record |= {"split": command.split, "beam": command.beam}
    return record | error_rates.pair_errors(references, hypotheses)


def _load_model(command: Evaluate, config: Config, tok: Tokenizer) -> tuple[Any, Any, dict]:
    """(model, parameters, {"run", "step", "parameters"})."""
    model = models.of_run(config, tok)
    step, params = checkpoints.load_params(command.run, model, command.step)
    record = {"run": str(command.run), "step": step, "parameters": models.count(params)}
    return model, params, record


def _evaluate_speech(command: Evaluate, config: Config) -> dict[str, Any]:
    """Error rates on the clips of a split or of another folder, and on strings of these clips."""
    error_rates.require_jiwer()
    tok = run_directory.read_tokenizer(command.run)
    assert isinstance(tok, SpeechTokenizer)
    assert isinstance(config.model, SpeechConfig)
    clips: tuple[Clip, ...]
    strings: Any = []
    if command.data.path:
        if command.split != "test":
            raise UserError(f"--split {command.split} is of the run's own data; leave it out")
        clips = tuple(recordings.find_clips(command.data.path))
    elif not resuming.has_data(command.run):
        raise UserError(f"{command.run} was imported, with no data; name some with --data.path DIR")
    else:
        dataset = data.load(config, tok if config.train.init_from else None, to_train=False)
        assert isinstance(dataset, SpeechData)
        resuming.check_same_data(command.run, dataset)
        clips = dataset.test if command.split == "test" else dataset.val
        if not clips:
            raise UserError(f"{command.run} has no clips in its {command.split} split")
        if dataset.string_clips > 1 and command.split == "test":
            strings = dataset.test_strings(config.model)
    model, params, record = _load_model(command, config, tok)

    def transcripts(examples: Iterable[Example]) -> list[str]:
        texts, examples = [], iter(examples)
        while part := [e.samples_N for e in islice(examples, CLIPS_IN_MEMORY)]:
            found = transcription.transcribe(
                model, params, tok, part, command.beam, command.length_penalty, times=False
            )
            texts += [transcript.text for transcript in found]
        return texts

    record |= {"split": str(command.data.path or command.split), "beam": command.beam}
    record |= {"clips": len(clips)}
    record |= error_rates.speech_errors(clips, transcripts(recordings.read_examples(clips)))
    if strings:
        of_strings = error_rates.speech_errors(strings, transcripts(strings))
        record["strings"] = {"strings": len(strings), **of_strings}
    return record


def report(record: dict[str, Any]) -> str:
    """A record of `evaluate` as text with tables."""
    lines = [f"{record['run']} step {record['step']}, {record['parameters']:,} parameters"]
    if "val_loss" in record:
        loss = record["val_loss"]
        lines += [f"val_loss {loss:.4f}", ""]
        lines += [
            "val_loss: mean of -ln(probability of the right token), validation split, in nats"
        ]
        lines += [f"per token: as uncertain as a choice of one in {math.exp(loss):.2f} tokens"]
        return "\n".join(lines)
    search_kind = "greedy" if record["beam"] == 1 else f"beam of {record['beam']}"
    if "cer" in record:
        lines.append(f"{record['clips']:,} clips ({record['split']}), {search_kind}")
        return "\n".join([*lines, "", *_speech_report(record)])
    lines += [
        f"{record['sources']:,} sources of the {record['split']} split, {search_kind}",
        "",
        "                          any listed target   first target only",
        f"word error rate (WER)     {record['wer']:17.2%} {record['wer_single_reference']:19.2%}",
        f"phoneme error rate (PER)  {record['per']:17.2%} {record['per_single_reference']:19.2%}",
        "",
        f"most frequent confusions, reference > hypothesis ({error_rates.NOTHING}: no token):",
    ]
    cells = [f"{reference} > {hypothesis} {n}" for reference, hypothesis, n in record["confusions"]]
    width = max(map(len, cells), default=0) + 3
    for first in range(0, len(cells), 5):
        lines.append("".join(cell.ljust(width) for cell in cells[first : first + 5]).rstrip())
    lines += ["", *PAIRS_LEGEND]
    return "\n".join(lines)


PAIRS_LEGEND = (
    "WER: share of sources whose output equals none of their targets (or not the first target)",
    "PER: substituted, missing and extra tokens per token of the nearest (or the first) target",
)
SPEECH_LEGEND = (
    "WER, CER: substituted, missing and extra words (characters) per word (character) spoken",
    "no error: share of clips whose transcript is right",
)


def _speech_report(record: dict[str, Any]) -> list[str]:
    def row(name: str, n: int, rates: dict[str, Any]) -> str:
        shares = f"{rates['wer']:8.2%} {rates['cer']:8.2%} {rates['accuracy']:10.2%}"
        return f"{name[:16]:16} {n:6,} {shares}"

    lines = [f"{'':16} {'clips':>6} {'WER':>8} {'CER':>8} {'no error':>10}"]
    lines += [
        row(name or "(unknown)", rates["clips"], rates)
        for name, rates in record["per_speaker"].items()
    ]
    lines.append(row("all", record["clips"], record))
    if "strings" in record:
        lines.append(row("strings of clips", record["strings"]["strings"], record["strings"]))
    low, high = record["wer_interval"]
    lines += [f"95 % interval of WER: {low:.2%} to {high:.2%}", *SPEECH_LEGEND, ""]
    if record["worst"]:
        lines.append("most errors: file, reference > hypothesis")
        lines += [f"  {w['audio']}  {w['reference']} > {w['hypothesis']}" for w in record["worst"]]
    return lines

"""How good a trained run is, on sources that it never saw.

    python -m gptjax.commands.evaluate RUN [--split test] [--data.path DIR] [--json]

A run on pairs is measured in the errors of what it writes, greedily unless there is a beam: the
share of sources for which that equals none of the targets listed (word error rate), and the
errors per token of the nearest one (phoneme error rate). A run on speech is measured in the errors
of words and characters; with --data.path on every clip of another folder. A run on text has a loss.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from gptjax import evaluation, models
from gptjax.command_line import parse_command
from gptjax.config import Config
from gptjax.config_encoders import SpeechConfig
from gptjax.data import dataset as data
from gptjax.data import speech
from gptjax.data.pairs import PairData, Pairs
from gptjax.data.speech import Clip, Example, SpeechData
from gptjax.data.tokenizer import SpeechTokenizer, TextTokenizer
from gptjax.decoding import beam_search, transcription
from gptjax.errors import UserError, exit_codes, import_extra
from gptjax.models import EncoderDecoder, SpeechRecognizer
from gptjax.runs import checkpoints, resuming, run_directory
from gptjax.runs import init_from as finetune
from gptjax.scale import devices

N_CONFUSIONS = 50
N_WORST = 10
N_RESAMPLED = 1000
"""Test sets drawn anew for a confidence interval."""
N_HELD = 256
"""Clips in memory at once."""
NEEDS = "error rates need"
NOTHING = "-"
"""Stands for the other side of an insertion or a deletion."""


@dataclass(frozen=True)
class Elsewhere:
    """Data that a run was not trained on."""

    path: Path | None = None
    """Of speech: a folder or manifest of which every clip is a test clip, as --data.path of
    train.py."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained run on its validation or test split."""

    run: tyro.conf.Positional[Path]
    """Run directory that train.py made."""
    split: Literal["val", "test"] = "test"
    """Of pairs and of speech; a text has only val."""
    beam: int = 1
    """Targets that beam search keeps; 1 is greedy."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / length ** this."""
    step: str = "best"
    """Which checkpoint: best, latest or a step."""
    json: bool = False
    """Print one JSON object."""
    data: Elsewhere = field(default_factory=Elsewhere)


def evaluate(command: Evaluate) -> dict[str, Any]:
    """Raises UserError for a folder that is no run, and when its data is not there any more."""
    devices.require_backend()
    beam_search.check(command.beam, command.length_penalty)
    config = run_directory.read_config(command.run)
    if isinstance(config.model, SpeechConfig):
        return evaluate_speech(command, config)
    if command.data.path:
        raise UserError(f"--data.path is for speech, which {command.run} is not; leave it out")
    dataset = data.load(config, finetune.vocabulary(config, command.run))
    resuming.check_same_data(command.run, dataset)
    dtype = devices.compute_dtype(config.train)
    model = models.build(config.model, dataset.tokenizer, dtype)
    step, params = checkpoints.load_params(command.run, model, command.step)
    record = {"run": str(command.run), "step": step, "parameters": models.count(params)}
    if isinstance(dataset, PairData):
        pairs = dataset.test if command.split == "test" else dataset.val
        if not pairs:
            raise UserError(f"{command.run} has no pairs in its {command.split} split")
        import_extra("jiwer", NEEDS)  # missing? Better said now
        assert isinstance(model, EncoderDecoder)
        sources, tok = list(pairs), dataset.tokenizer
        found = beam_search.transduce(
            model, params, tok, sources, command.beam, command.length_penalty
        )
        written = {source: best[0].text for source, best in zip(sources, found, strict=True)}
        pairs = {source: [spelled(tok.target, t) for t in pairs[source]] for source in pairs}
        written = {source: spelled(tok.target, text) for source, text in written.items()}
        record |= {"split": command.split, "beam": command.beam, **errors(pairs, written)}
    else:
        batch_size = devices.micro_batch_size(
            config.train, config.model, dataset.tokens_per_sequence(config)
        )
        mean_loss = evaluation.make_evaluate(model)
        record["val_loss"] = mean_loss(params, dataset.validation(config, batch_size))
    return record


def evaluate_speech(command: Evaluate, config: Config) -> dict[str, Any]:
    """Errors on the clips of a split, or of another folder, and on strings made of them."""
    import_extra("jiwer", NEEDS)
    tok = run_directory.read_tokenizer(command.run)
    assert isinstance(tok, SpeechTokenizer)
    if command.data.path:
        if command.split != "test":
            raise UserError(f"--split {command.split} is of the run's own data; leave it out")
        clips, strings = tuple(speech.find_clips(command.data.path)), []
    elif not resuming.has_data(command.run):
        raise UserError(f"{command.run} was imported, with no data; name some with --data.path DIR")
    else:
        dataset = data.load(config, tok if config.train.init_from else None)
        assert isinstance(dataset, SpeechData)
        resuming.check_same_data(command.run, dataset)
        clips = dataset.test if command.split == "test" else dataset.val
        if not clips:
            raise UserError(f"{command.run} has no clips in its {command.split} split")
        with_strings = dataset.string_clips > 1 and command.split == "test"
        assert isinstance(config.model, SpeechConfig)
        strings = dataset.test_strings(config.model) if with_strings else []
    model = models.build(config.model, tok, devices.compute_dtype(config.train))
    assert isinstance(model, SpeechRecognizer)
    step, params = checkpoints.load_params(command.run, model, command.step)

    def heard(examples: Iterable[Example]) -> list[str]:
        """What the model hears, a part of the examples after the other."""
        texts, examples = [], iter(examples)
        while part := [e.samples_N for e in islice(examples, N_HELD)]:
            found = transcription.transcribe(
                model, params, tok, part, command.beam, command.length_penalty, times=False
            )
            texts += [transcript.text for transcript in found]
        return texts

    record = {"run": str(command.run), "step": step, "parameters": models.count(params)}
    split = str(command.data.path) if command.data.path else command.split
    record |= {"split": split, "beam": command.beam, "clips": len(clips)}
    record |= speech_errors(clips, heard(speech.read_examples(clips)))
    if strings:
        of_strings = speech_errors(strings, heard(strings))
        record["strings"] = {"strings": len(strings), **of_strings}
    return record


def speech_errors(said: Sequence[Clip | Example], written: Sequence[str]) -> dict[str, Any]:
    """Error rates of transcripts, as shares of 1, whatever their case and punctuation.

    `wer` and `cer`: substituted, deleted and inserted words or characters per one that was said
    (Levenshtein, by jiwer); `wer_interval`: 95 % of test sets drawn anew from this one have a WER
    in it (bootstrap over clips). `accuracy`: clips without any error. `per_speaker`: these three
    and the number of clips. `worst`: the clips with most errors.
    """
    jiwer = import_extra("jiwer", NEEDS)
    plain = jiwer.Compose(
        [
            jiwer.ToLowerCase(),
            jiwer.RemovePunctuation(),
            jiwer.RemoveMultipleSpaces(),
            jiwer.Strip(),
        ]
    )
    right, heard = [plain(one.text) for one in said], [plain(text) for text in written]
    compared = [jiwer.process_words(r, h) for r, h in zip(right, heard, strict=True)]
    mistakes = np.array([c.substitutions + c.deletions + c.insertions for c in compared])
    n_words = np.array([c.hits + c.substitutions + c.deletions for c in compared])
    per_word = mistakes / np.maximum(n_words, 1)  # a text may be punctuation alone

    def rates(rows: np.ndarray) -> dict[str, float]:
        return {
            "wer": float(mistakes[rows].sum() / max(1, n_words[rows].sum())),
            "cer": float(
                jiwer.cer([right[i] for i in rows.tolist()], [heard[i] for i in rows.tolist()])
            ),
            "accuracy": float((mistakes[rows] == 0).mean()),
        }

    everything = np.arange(len(said))
    drawn = np.random.default_rng(0).integers(len(said), size=(N_RESAMPLED, len(said)))
    interval = np.quantile(
        mistakes[drawn].sum(1) / np.maximum(n_words[drawn].sum(1), 1), (0.025, 0.975)
    )
    speakers = np.array([one.speaker for one in said])
    per_speaker = {
        str(name): {
            "clips": int((speakers == name).sum()),
            **rates(np.flatnonzero(speakers == name)),
        }
        for name in np.unique(speakers)
    }
    order = sorted(np.flatnonzero(mistakes).tolist(), key=lambda i: (-per_word[i], i))
    worst = [
        {
            "audio": str(getattr(said[i], "path", f"string {i}")),
            "said": said[i].text,
            "written": written[i],
            "errors": int(mistakes[i]),
        }
        for i in order[:N_WORST]
    ]
    return {
        **rates(everything),
        "wer_interval": [float(x) for x in interval],
        "per_speaker": per_speaker,
        "worst": worst,
    }


def spelled(tok: TextTokenizer, text: str) -> str:
    """The tokens of a text with one blank between them, for jiwer to compare."""

    def name(i: int) -> str:
        shown = tok.decode([i]).replace(" ", "␣")
        return shown if shown and "\ufffd" not in shown else f"<{i}>"  # a part of a character

    return " ".join(map(name, tok.encode(text)))


def errors(pairs: Pairs, written: dict[str, str]) -> dict[str, Any]:
    """Error rates of what was written for each source, as shares of 1, and what was confused.

    Both are texts whose tokens blanks part.

    `wer`: sources whose text equals none of their targets. `per`: substituted, deleted and
    inserted tokens against the nearest target, per token of it (Levenshtein, by jiwer). The
    same with `_single_reference` against the first target alone. `confusions`: the most frequent
    (right, written, count) of the nearest targets.
    """
    jiwer = import_extra("jiwer", NEEDS)
    texts = list(written.values())
    first = [pairs[source][0] for source in written]

    def nearest(source: str) -> str:
        """The first target that is nearest to what was written."""
        targets = pairs[source]
        if len(targets) == 1:
            return targets[0]
        compared = [jiwer.process_words(target, written[source]) for target in targets]
        mistakes = [c.substitutions + c.deletions + c.insertions for c in compared]
        return targets[mistakes.index(min(mistakes))]

    references = [nearest(source) for source in written]
    compared = jiwer.process_words(references, texts)
    confusions: Counter[tuple[str, str]] = Counter()
    for right, wrong, chunks in zip(
        compared.references, compared.hypotheses, compared.alignments, strict=True
    ):
        for chunk in chunks:
            if chunk.type == "equal":
                continue
            of_right = right[chunk.ref_start_idx : chunk.ref_end_idx]
            of_wrong = wrong[chunk.hyp_start_idx : chunk.hyp_end_idx]
            confusions.update(zip_longest(of_right, of_wrong, fillvalue=NOTHING))
    n_wrong = sum(written[source] not in pairs[source] for source in written)
    n_wrong_single = sum(a != b for a, b in zip(first, texts, strict=True))
    return {
        "sources": len(written),
        "wer": n_wrong / len(written),
        "per": compared.wer,
        "wer_single_reference": n_wrong_single / len(written),
        "per_single_reference": jiwer.wer(first, texts),
        "confusions": [[*pair, n] for pair, n in confusions.most_common(N_CONFUSIONS)],
    }


def report(record: dict[str, Any]) -> str:
    """The record in words and tables, for people."""
    lines = [f"{record['run']} step {record['step']}, {record['parameters']:,} parameters"]
    if "val_loss" in record:
        return "\n".join([*lines, f"val_loss {record['val_loss']:.4f}"])
    if "cer" in record:
        return "\n".join([*lines, *_speech_report(record)])
    lines += [
        f"{record['sources']:,} sources of the {record['split']} split, "
        + ("greedy" if record["beam"] == 1 else f"beam of {record['beam']}"),
        "",
        "                          any listed target   the first alone",
        f"word error rate (WER)     {record['wer']:17.2%} {record['wer_single_reference']:17.2%}",
        f"phoneme error rate (PER)  {record['per']:17.2%} {record['per_single_reference']:17.2%}",
        "",
        f"most frequent confusions, right > written ({NOTHING}: nothing there):",
    ]
    cells = [f"{right} > {wrong} {n}" for right, wrong, n in record["confusions"]]
    width = max(map(len, cells), default=0) + 3
    for first in range(0, len(cells), 5):
        lines.append("".join(cell.ljust(width) for cell in cells[first : first + 5]).rstrip())
    return "\n".join(lines)


def _speech_report(record: dict[str, Any]) -> list[str]:
    greedy = "greedy" if record["beam"] == 1 else f"beam of {record['beam']}"
    lines = [f"{record['clips']:,} clips ({record['split']}), {greedy}", ""]
    lines.append(f"{'':16} {'clips':>6} {'WER':>8} {'CER':>8} {'all right':>10}")

    def row(name: str, n: int, of: dict[str, Any]) -> str:
        shares = f"{of['wer']:8.2%} {of['cer']:8.2%} {of['accuracy']:10.2%}"
        return f"{name[:16]:16} {n:6,} {shares}"

    for name, of in record["per_speaker"].items():
        lines.append(row(name or "(unknown)", of["clips"], of))
    lines.append(row("all", record["clips"], record))
    if "strings" in record:
        lines.append(row("strings of them", record["strings"]["strings"], record["strings"]))
    low, high = record["wer_interval"]
    lines += [f"95 % interval of WER: {low:.2%} to {high:.2%}", ""]
    if record["worst"]:
        lines.append("most errors: file, said > written")
        lines += [f"  {w['audio']}  {w['said']} > {w['written']}" for w in record["worst"]]
    return lines


def main(argv: list[str]) -> None:
    with exit_codes():
        command = parse_command(Evaluate, argv, "python -m gptjax.commands.evaluate")
        record = evaluate(command)
        print(json.dumps(record, ensure_ascii=False) if command.json else report(record))


if __name__ == "__main__":
    main(sys.argv[1:])

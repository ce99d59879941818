"""`gptjax sample` for sequence-to-sequence models: turns sources into targets."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.command_line import refuse_options
from gptjax.commands.conversation import ASKS, converse
from gptjax.commands.sample_options import Sample, read_text
from gptjax.config import Config
from gptjax.config_checks import require
from gptjax.data.tokenizer import PairTokenizer
from gptjax.decoding import attention_maps, attention_weights, beam_search
from gptjax.errors import UserError
from gptjax.models import EncoderDecoder


def transduce(command: Sample, run_config: Config, tok: PairTokenizer) -> None:
    """Prints the --n-best targets of every source.

    A line of --source-file that the model cannot read is reported, the others are answered, and
    then UserError is raised, so the exit code is 2.
    """
    beam_search.check(command.beam, command.length_penalty)
    n_best, rule = command.n_best, f"in [1, --beam {command.beam}]"
    require(1 <= n_best <= command.beam, "n-best", n_best, rule)
    if command.interactive:
        refuse_options(command, ("source", "source_file"), ASKS)
    sources = [] if command.interactive else _read_sources(command)
    command.check_picture(len(sources), "source", "--source")
    longest = run_config.model.source_block_size  # pyright: ignore[reportAttributeAccessIssue]
    n_sources = len(sources)
    sources = _readable(command, sources, tok, longest)  # before the model is loaded
    step, model, params = command.load_model(run_config, tok)

    def answer(sources: list[str]) -> None:
        found = beam_search.transduce(
            model, params, tok, sources, command.beam, command.length_penalty
        )
        for source, beams in zip(sources, found, strict=True):
            best = beams[:n_best]
            if command.json:
                fields = ("text", "score", "log_probability")
                targets = [{name: getattr(h, name) for name in fields} for h in best]
                answered = {"source": source, "targets": targets, "step": step}
                print(json.dumps(answered, ensure_ascii=False))
                continue
            for hypothesis in best:
                shown = [source] if len(sources) > 1 else []
                if n_best > 1:
                    shown.append(f"{hypothesis.score:.4f}")
                print("\t".join([*shown, hypothesis.text]))
        if command.attention:
            _draw_attention(command.attention, model, params, tok, sources[0], found[0][0])

    if command.interactive:
        converse("source", lambda line: answer([line]), {}, not command.json)
    else:
        answer([source for _, source in sources])
    if n_bad := n_sources - len(sources):
        raise UserError(
            f"{n_bad} of the {n_sources} sources could not be read; they are named above"
        )


def _read_sources(command: Sample) -> list[tuple[int, str]]:
    """(number of the line, source) of every source."""
    if command.source_file is None:
        if not command.source:
            raise UserError("--source is missing; give one, or --source-file FILE")
        return [(1, command.source)]
    if command.source:
        raise UserError("--source and --source-file are two inputs; give one")
    text = read_text("--source-file", command.source_file)
    lines = enumerate(map(str.strip, text.split("\n")), 1)  # splitlines also splits at U+2028
    sources = [(number, line) for number, line in lines if line]
    if not sources:
        raise UserError(f"--source-file {command.source_file} has no sources, one a line")
    return sources


def _readable(
    command: Sample, sources: list[tuple[int, str]], tok: PairTokenizer, longest: int
) -> list[tuple[int, str]]:
    """The sources that the model can read. Prints why it cannot read the others.

    Raises UserError if there is only one, or none is left.
    """
    good, errors = [], []
    for number, source in sources:
        try:
            tok.encode_source(source, longest)
        except UserError as error:
            where = f"--source-file {command.source_file}, line {number}: "
            errors.append(f"{where if command.source_file else ''}{error}")
        else:
            good.append((number, source))
    if errors and not good:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(errors[0] + more)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return good


def _draw_attention(
    path: Path,
    model: EncoderDecoder,
    params: Any,
    tok: PairTokenizer,
    source: str,
    best: beam_search.Hypothesis,
) -> None:
    """Draws the mean over layers and heads: a row per target token, a column per source token."""
    source_1S = tok.encode_source(source, model.config.source_block_size)[None]
    tokens_1T = np.concatenate([[tok.boundary], best.ids])[None, : model.config.block_size]
    mask_1S = np.ones(source_1S.shape, bool)
    weights_1LHTS = attention_weights.cross_attention(model, params, tokens_1T, source_1S, mask_1S)
    weights_TS = np.asarray(weights_1LHTS[0].mean((0, 1)))
    sources = [tok.source.decode([i]) for i in source_1S[0]]
    targets = [*(tok.target.decode([i]) for i in best.ids), "end"][: len(weights_TS)]
    title = "cross-attention, mean over layers and heads"
    attention_maps.draw(weights_TS, sources, targets, title, path)
    print(f"attention: {path}", file=sys.stderr)

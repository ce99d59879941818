"""`gptjax sample` for sequence-to-sequence models: turns sources into targets."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.commands.sample_options import (
    Sample,
    answer_lines,
    check_picture,
    load_model,
    read_text,
)
from gptjax.config import Config
from gptjax.data.tokenizer import PairTokenizer
from gptjax.decoding import attention_maps, attention_weights, beam_search
from gptjax.errors import UserError
from gptjax.models import EncoderDecoder


def transduce(command: Sample, run_config: Config, tok: PairTokenizer) -> None:
    """Prints the --n-best targets of every source."""
    beam_search.check(command.beam, command.length_penalty)
    if not 1 <= command.n_best <= command.beam:
        raise UserError(f"--n-best is {command.n_best}, but must be in [1, --beam {command.beam}]")
    sources = [] if command.interactive else _read_sources(command)
    if command.attention:
        if len(sources) != 1:
            raise UserError(f"--attention draws one source, not {len(sources)}; give one --source")
        check_picture(command.attention)
    longest = run_config.model.source_block_size  # pyright: ignore[reportAttributeAccessIssue]
    for source in sources:  # refused before the model is loaded
        tok.encode_source(source, longest)
    step, model, params = load_model(command, run_config, tok)

    def answer(sources: list[str]) -> None:
        found = beam_search.transduce(
            model, params, tok, sources, command.beam, command.length_penalty
        )
        for source, beams in zip(sources, found, strict=True):
            best = beams[: command.n_best]
            if command.json:
                print(_as_json(source, best, step))
                continue
            for hypothesis in best:
                shown = [source] if len(sources) > 1 else []
                if command.n_best > 1:
                    shown.append(f"{hypothesis.score:.4f}")
                print("\t".join([*shown, hypothesis.text]))
        if command.attention:
            _draw_attention(command.attention, model, params, tok, sources[0], found[0][0])

    if command.interactive:
        answer_lines(command, "source", lambda line: answer([line]))
    else:
        answer(sources)


def _read_sources(command: Sample) -> list[str]:
    if command.source_file is None:
        if not command.source:
            raise UserError("--source is missing; give one, or --source-file FILE")
        return [command.source]
    if command.source:
        raise UserError("--source and --source-file are two inputs; give one")
    text = read_text("--source-file", command.source_file)
    sources = [line.strip() for line in text.splitlines() if line.strip()]
    if not sources:
        raise UserError(f"--source-file {command.source_file} has no sources, one a line")
    return sources


def _as_json(source: str, best: list[beam_search.Hypothesis], step: int) -> str:
    targets = [
        {"text": h.text, "score": h.score, "log_probability": h.log_probability} for h in best
    ]
    return json.dumps({"source": source, "targets": targets, "step": step}, ensure_ascii=False)


def _draw_attention(
    path: Path,
    model: EncoderDecoder,
    params: Any,
    tok: PairTokenizer,
    source: str,
    best: beam_search.Hypothesis,
) -> None:
    """Draws the mean over layers and heads: a row per target token, a column per source token."""
    source_ids = tok.source.encode(source)
    tokens = np.concatenate([[tok.boundary], best.ids])[: model.config.block_size]
    source_1S, mask_1S = source_ids[None], np.ones((1, len(source_ids)), bool)
    weights_1LHTS = attention_weights.cross_attention(
        model, params, tokens[None], source_1S, mask_1S
    )
    target = [tok.target.decode([i]) for i in best.ids] + ["end"]
    title = "cross-attention, mean over layers and heads"
    attention_maps.draw(
        np.asarray(weights_1LHTS[0].mean((0, 1))),
        [tok.source.decode([i]) for i in source_ids],
        target[: len(tokens)],
        title,
        path,
    )
    print(f"attention: {path}", file=sys.stderr)

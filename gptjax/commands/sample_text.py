"""`gptjax sample` for language models: continues a prompt."""

import dataclasses
import json
import random
import sys
from collections.abc import Callable, Iterator

import numpy as np

from gptjax.command_line import refuse_options
from gptjax.commands.conversation import ASKS, converse
from gptjax.commands.sample_options import Sample, read_text
from gptjax.config import BigramConfig, Config, GPTConfig, ModelConfig
from gptjax.config_checks import MOST_OF_ANY, require, require_memory
from gptjax.data.tokenizer import TextTokenizer
from gptjax.decoding import attention_maps, attention_weights, sampling
from gptjax.decoding.continuation import Continuation
from gptjax.errors import UserError
from gptjax.scale import memory

# --attention draws at most this many tokens; more would be too small to read.
MOST_DRAWN = 48


DEFAULT_SEED = 1337


def continue_prompt(command: Sample, run_config: Config, tok: TextTokenizer) -> None:
    """Prints --num-samples continuations of the prompt."""
    if command.greedy:
        why = "takes the most likely token with --greedy; leave one out"
        refuse_options(command, ("temperature", "top_k", "top_p"), why)
    if command.interactive:
        refuse_options(command, ("prompt", "prompt_file"), ASKS)
    temperature = 0.0 if command.greedy else command.temperature
    sampler = sampling.Sampler(temperature, command.top_k, command.top_p)
    sampler.check(tok.vocab_size)
    n_tokens, n_samples = command.max_new_tokens, command.num_samples
    require(n_tokens >= 1, "max-new-tokens", n_tokens, "at least 1")
    require(n_tokens <= MOST_OF_ANY, "max-new-tokens", n_tokens, f"at most {MOST_OF_ANY:,}")
    require(n_samples >= 1, "num-samples", n_samples, "at least 1")
    model, vocab_size = run_config.model, tok.vocab_size
    n_bytes, there = n_samples * _bytes(model, vocab_size), memory.limit() or None
    require_memory("num-samples", n_samples, n_bytes, there)
    seed = _check_seed(DEFAULT_SEED if command.seed is None else command.seed)
    prompt = "" if command.interactive else _read_prompt(command)
    block_size = run_config.model.block_size
    ids = _encode(prompt, tok, block_size)  # refused before the model is loaded
    command.check_picture(1, "prompt", "--prompt")
    if command.attention:
        if isinstance(run_config.model, BigramConfig):
            raise UserError(f"--attention is not for {command.run}: a bigram has none")
        if command.interactive:
            raise UserError("--attention draws one --prompt; leave --interactive out")
        most = min(MOST_DRAWN, block_size)
        if not 2 <= len(ids) <= most:
            rule = f"a prompt of 2 to {most} tokens, not {len(ids)}; give such a --prompt"
            raise UserError(f"--attention draws {rule}")
    step, model, params = command.load_model(run_config, tok)

    def answer(prompt: str, ids: np.ndarray, seed: int, sampler: sampling.Sampler) -> None:
        ids_BT = np.repeat(ids[None], n_samples, axis=0)
        pieces = sampling.generate(
            model, params, ids_BT, n_tokens, sampler, seed, command.exact_window
        )
        _show(command, prompt, ids, step, pieces, tok)

    if command.interactive:
        if sys.stdin.isatty():
            print("getting ready ...", file=sys.stderr)
            for length in sampling.prefill_lengths(block_size):  # so that no answer waits long
                zeros_BT, n = np.zeros((n_samples, length), np.int32), min(2, n_tokens)
                sampling.complete(model, params, zeros_BT, n, sampler=sampler, seed=seed)
        _converse(command, sampler, answer, tok, block_size)
    else:
        answer(prompt, ids, seed, sampler)
    if command.attention:
        weights = attention_weights.self_attention(model, params, ids)
        texts = [tok.decode([i]) for i in ids]  # part of a character is shown as its number
        names = [f"<{i}>" if "\ufffd" in text else text for text, i in zip(texts, ids, strict=True)]
        attention_maps.draw_heads(weights, names, command.attention)
        print(f"attention: {command.attention}", file=sys.stderr)


def _converse(
    command: Sample,
    sampler: sampling.Sampler,
    answer: Callable[[str, np.ndarray, int, sampling.Sampler], None],
    tok: TextTokenizer,
    block_size: int,
) -> None:
    """Answers prompts, each with a new seed unless one is set."""
    seed = command.seed

    def set_seed(value: str) -> None:
        nonlocal seed
        seed = _check_seed(int(value)) if value.isdecimal() else None
        print(f"seed {'of every prompt: new' if seed is None else seed}", file=sys.stderr)

    def set_temperature(value: str) -> None:
        nonlocal sampler
        try:
            new = dataclasses.replace(sampler, temperature=float(value))
        except ValueError:
            raise UserError(f"/temperature is {value!r}, but must be a number >= 0") from None
        new.check(tok.vocab_size)
        sampler = new
        print(f"temperature {new.temperature:g}", file=sys.stderr)

    def reply(line: str) -> None:
        ids = _encode(line, tok, block_size)
        this_seed = random.getrandbits(32) if seed is None else seed
        answer(line, ids, this_seed, sampler)
        if seed is None and not sampler.is_greedy and not command.json:
            print(f"(seed {this_seed})", file=sys.stderr)

    commands = {"/seed": set_seed, "/temperature": set_temperature}
    converse("prompt", reply, commands, not command.json)


def _check_seed(seed: int) -> int:
    require(0 <= seed < 2**32, "seed", seed, "in [0, 2**32)")
    return seed


def _bytes(model: ModelConfig, vocab_size: int) -> int:
    """Memory that a sample needs while it is generated, at least: its cache and its logits."""
    n_values = vocab_size
    if isinstance(model, GPTConfig):
        n_values += model.n_layer * model.block_size * model.n_embd  # keys and values, bfloat16
    return 4 * n_values


def _read_prompt(command: Sample) -> str:
    if command.prompt_file is None:
        return command.prompt
    if command.prompt:
        raise UserError("--prompt and --prompt-file are two prompts; give one")
    return read_text("--prompt-file", command.prompt_file)


def _encode(prompt: str, tok: TextTokenizer, block_size: int) -> np.ndarray:
    """Token ids (N,), N >= 1, of the prompt. Raises UserError for an unknown character."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt is not UTF-8 at position {error.start}") from None
    ids = tok.encode(prompt) if prompt else np.array([tok.start], np.int32)
    if len(ids) > block_size:
        advice = f"the model reads its last {block_size}"
        print(f"the prompt has {len(ids)} tokens; {advice}", file=sys.stderr)
    return ids


def _show(
    command: Sample,
    prompt: str,
    ids: np.ndarray,
    step: int,
    pieces: Iterator[np.ndarray],
    tok: TextTokenizer,
) -> None:
    """Prints one sample while it is generated, several samples when they are complete."""
    prompt_ids = ids if prompt else ids[:0]  # the start token is not shown
    ends = () if command.ignore_eos else tok.ends
    rows = [Continuation(tok, prompt_ids, ends, command.stop) for _ in range(command.num_samples)]
    streams = command.stream and not command.json and len(rows) == 1
    print(rows[0].prompt if streams else "", end="", flush=True)
    for piece in pieces:
        new = [row.add(tokens) for row, tokens in zip(rows, piece, strict=True)]
        print(new[0] if streams else "", end="", flush=True)
        if all(row.is_complete for row in rows):
            break
    if streams:
        print(rows[0].rest())
        return
    for i, row in enumerate(rows):
        if command.json:
            fields = {"prompt": prompt, "text": row.text, "step": step, "sample": i}
            print(json.dumps(fields, ensure_ascii=False))
        else:
            heading = f"--- sample {i + 1} of {len(rows)}\n" * (len(rows) > 1)
            print(heading + row.prompt + row.text)

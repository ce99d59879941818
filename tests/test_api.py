"""gptjax from Python: the same results as the commands, and exceptions instead of exits."""

import math

import jax
import numpy as np
import pytest
from conftest import TINY_RUN, Printed

import gptjax
from gptjax.commands import sample


def test_it_generates_what_the_command_prints(text_run, printed: Printed):
    run = gptjax.load(text_run)
    flags = ("--prompt", "abc", "--max-new-tokens", "20", "--seed", "3")
    expected = printed(sample.main, str(text_run), *flags)
    assert run.generate("abc", max_new_tokens=20, seed=3) + "\n" == expected
    assert "".join(run.stream("abc", 20, seed=3)) == run.generate("abc", 20, seed=3)
    assert len(run.generate(max_new_tokens=7)) == 7
    whole = run.generate("abc", 30)
    stop = whole[10:12]
    assert run.generate("abc", 30, stop=stop) == "abc" + whole[3:].partition(stop)[0]


def test_loss_is_the_mean_over_the_tokens_after_the_first(text_run):
    run = gptjax.load(text_run)
    text = "a bad cab fed a hog "[:12]
    ids = run.tokenizer.encode(text)
    logits_BTV, _ = jax.jit(run.model.apply)({"params": run.params}, ids[None, :-1])
    logits = np.asarray(logits_BTV[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean([log_p[t, target] for t, target in enumerate(ids[1:])])
    assert math.isclose(run.loss(text), expected, rel_tol=1e-5)


def test_attention_weights_are_causal_shares(text_run):
    weights = gptjax.load(text_run).attention("abcde")
    assert weights.shape == (1, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert np.all(weights[..., ~np.tri(5, dtype=bool)] == 0)


def test_bad_input_is_an_exception_and_not_an_exit(text_run, tmp_path):
    run = gptjax.load(text_run)
    for call, words in (
        (lambda: gptjax.load(tmp_path), "not a run directory"),
        (lambda: gptjax.load(text_run, step=3), "--step 3 is not there"),
        (lambda: run.generate("Z"), "Z"),
        (lambda: run.generate("a", temperature=-1), "temperature"),
        (lambda: run.loss("a"), "at least 2 tokens"),
        (lambda: run.attention("a" * 17), "1 to 16"),
        (lambda: run.transduce("word"), "is for an encoder-decoder, but"),
        (lambda: run.transcribe("a.wav"), "is for a speech recognizer, but"),
        (lambda: gptjax.train_run("gpt_cup"), "did you mean gpt_cpu?"),
        (lambda: gptjax.train_run("debug", n_head=2, nothing=1), "nothing is no field"),
        (lambda: gptjax.train_run("g2p_cpu", name=1), "name is in"),
    ):
        with pytest.raises(gptjax.UserError, match=words):
            call()


def test_what_it_has_no_name_for_is_an_attribute_error():
    assert not hasattr(gptjax, "no_such_name")


@pytest.mark.slow
def test_it_trains_as_the_command_does(text_file, text_run, tmp_path):
    flags = TINY_RUN[2:]
    fields = {
        flag.rpartition(".")[2].replace("-", "_"): value
        for flag, value in zip(flags[::2], flags[1::2], strict=True)
    }
    run = gptjax.train_run("debug", run_dir=tmp_path / "run", path=text_file, **fields)
    expected = gptjax.load(text_run, "latest")
    for a, b in zip(*(jax.tree.leaves(r.params) for r in (run, expected)), strict=True):
        np.testing.assert_array_equal(a, b)

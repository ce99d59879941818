"""What a run on pairs writes, how it is measured, and that a stopped one continues."""

import io
import json
import random
import shutil
import sys
from pathlib import Path

import matplotlib.image
import pytest
from conftest import Printed, Refused, edit_run
from test_error_rates import expected_rates

import gptjax
from gptjax import train
from gptjax.commands import evaluate, sample
from gptjax.data import batches
from gptjax.data import dataset as data
from gptjax.data.pairs import PairData
from gptjax.runs import report, run_directory

pytestmark = pytest.mark.slow
MAX_STEPS, EVAL_INTERVAL = 8, 4
CONFIG = """
from pathlib import Path
from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_encoders import EncoderDecoderConfig, PairsDataConfig

config = Config(
    model=EncoderDecoderConfig(
        n_layer=1, n_encoder_layer=1, n_head=2, n_embd=16, dropout=0.1,
        block_size=8, source_block_size=8, norm="rmsnorm", bias=False,
    ),
    data=PairsDataConfig(path=Path({path!r}), tokenizer="word", val_fraction=0.2),
    optim=OptimConfig(learning_rate=1e-2),
    train=TrainConfig(
        max_steps={max_steps}, batch_size=16, eval_interval={eval_interval}, eval_batches=0,
        log_interval=1, sample_tokens=1,
    ),
)
"""


# --- runs


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Letters and their capitals, backwards; some with a second target, the same forwards."""
    folder = tmp_path_factory.mktemp("config")
    rng = random.Random(0)
    sources = {"".join(rng.choices("abcd", k=rng.randint(2, 7))): None for _ in range(130)}
    lines = []
    for i, source in enumerate(list(sources)[:100]):
        lines.append(f"{source}\t{' '.join(source[::-1].upper())}\n")
        if i % 4 == 0 and source != source[::-1]:
            lines.append(f"{source}\t{' '.join(source.upper())}\n")
    assert len({line.split("\t")[0] for line in lines}) == 100
    (folder / "pairs.tsv").write_text("".join(lines))
    fields = {"max_steps": MAX_STEPS, "eval_interval": EVAL_INTERVAL}
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder / "pairs.tsv"), **fields))
    return folder / "tiny.py"


@pytest.fixture(scope="module")
def trained(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on pairs. Tests that could change it take a copy."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train.main(["--config", str(config_file), "--run-dir", str(run)])
    return run


@pytest.fixture(scope="module")
def dataset(trained: Path) -> PairData:
    loaded = data.load(run_directory.read_config(trained))
    assert isinstance(loaded, PairData)
    return loaded


def losses(run: Path) -> dict[tuple[int, str], float]:
    return {
        (row["step"], name): value
        for row in report.read_metrics(run)
        for name, value in row.items()
        if name.endswith("loss")
    }


def test_a_run_on_pairs_is_complete_and_learns(trained: Path, dataset: PairData) -> None:
    logged = losses(trained)
    steps = {name: [s for s, n in logged if n == name] for name in ("train_loss", "val_loss")}
    assert steps == {"train_loss": list(range(1, 9)), "val_loss": [0, 4, 8]}
    assert {name for _, name in logged} == {"train_loss", "val_loss"}  # no val_loss_sampled
    assert logged[8, "val_loss"] < logged[0, "val_loss"] - 0.1
    # More than one shape of batch was trained on.
    config = run_directory.read_config(trained)
    assert len({dataset.batch(config, step)["tokens"].shape for step in range(8)}) > 1
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["data"] == {
        "source": dataset.source,
        "sha256": dataset.sha256,
        **dataset.sizes,
    }
    lines = (trained / "samples/8.txt").read_text().splitlines()
    assert len(lines) == 20
    for line, source in zip(lines, dataset.val, strict=False):
        shown, _, right = line.split("\t")
        assert shown == source
        assert right == f"({' | '.join(dataset.val[source])})"


def test_a_run_on_pairs_continues_as_if_it_had_not_stopped(
    config_file: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not at an evaluation, nor where the shape of the batch changes."""
    run = tmp_path / "run"
    flags = ["--config", str(config_file), "--run-dir", str(run), "--train.sample-tokens", "0"]
    for steps in (5, MAX_STEPS):
        batches._epoch.cache_clear()  # another process would know nothing of it
        train.main([*flags, "--train.max-steps", str(steps)])
    assert "continuing at step 5" in capsys.readouterr().out
    ours, theirs = losses(run), losses(trained)
    del ours[5, "val_loss"]  # the end of the first part
    assert ours.keys() == theirs.keys()
    for key, loss in theirs.items():
        assert ours[key] == pytest.approx(loss, rel=1e-5), key
    trained_on = [theirs[step, "train_loss"] for step in range(1, MAX_STEPS + 1)]
    assert len({round(loss, 3) for loss in trained_on}) > 6  # which no other batches would repeat


@pytest.mark.parametrize(("split", "beam"), [("val", 1), ("test", 1), ("test", 3)])
def test_evaluate_measures_what_sample_writes(
    trained: Path, dataset: PairData, printed: Printed, tmp_path: Path, split: str, beam: int
) -> None:
    flags = ["--beam", beam, "--json"]
    record = json.loads(printed(evaluate.main, trained, "--split", split, *flags))
    of = {"val": dataset.val, "test": dataset.test}[split]
    assert len(of) == record["sources"] == 20
    (tmp_path / "sources.txt").write_text("\n".join(of))
    lines = printed(
        sample.main, trained, "--source-file", tmp_path / "sources.txt", *flags
    ).splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["source"] for answer in answers] == list(of)
    written = {answer["source"]: answer["targets"][0]["text"] for answer in answers}
    expected = expected_rates(of, written)
    assert {name: record[name] for name in expected} == pytest.approx(expected)
    assert expected["per"] > 0.1  # eight steps do not teach it
    assert record["confusions"]
    assert record["run"] == str(trained)
    assert (record["split"], record["beam"]) == (split, beam)
    assert record["step"] in (4, 8)
    assert record["parameters"] > 1000


def test_a_report_for_people_has_the_same_numbers(trained: Path, printed: Printed) -> None:
    record = json.loads(printed(evaluate.main, trained, "--json"))
    text = printed(evaluate.main, trained)
    assert "20 sources of the test split, greedy" in text  # the default
    for row, name in (("word error rate", "wer"), ("phoneme error rate", "per")):
        (line,) = (line for line in text.splitlines() if line.startswith(row))
        both = [f"{record[name]:.2%}", f"{record[name + '_single_reference']:.2%}"]
        assert line.split()[-2:] == both
    right, wrong, n = record["confusions"][0]
    assert f"{right} > {wrong} {n}" in text


def test_each_checkpoint_can_be_evaluated(trained: Path, printed: Printed) -> None:
    records = [
        json.loads(printed(evaluate.main, trained, "--json", "--step", step)) for step in (4, 8)
    ]
    assert [record["step"] for record in records] == [4, 8]
    assert records[0]["confusions"] != records[1]["confusions"]


def test_a_run_on_text_has_a_loss(text_run: Path, printed: Printed) -> None:
    record = json.loads(printed(evaluate.main, text_run, "--json"))
    assert record.keys() == {"run", "step", "parameters", "val_loss"}
    logged = losses(text_run)
    assert record["val_loss"] == pytest.approx(logged[record["step"], "val_loss"], rel=1e-5)
    assert logged[2, "val_loss"] != pytest.approx(logged[4, "val_loss"], rel=1e-5)
    text = printed(evaluate.main, text_run)
    assert f"val_loss {record['val_loss']:.4f}" in text


# --- sampling


def test_from_python_it_is_the_same(trained: Path, printed: Printed) -> None:
    run = gptjax.load(trained)
    for beam in (1, 3):
        command = printed(sample.main, trained, "--source", "abcd", "--beam", beam)
        assert run.transduce("abcd", beam) + "\n" == command
    with pytest.raises(gptjax.UserError, match="'Q'"):
        run.transduce("abQ")
    with pytest.raises(gptjax.UserError, match="generate\\(\\) is for a language model"):
        run.generate("ab")


def test_the_n_best_are_printed_with_their_scores(trained: Path, printed: Printed) -> None:
    flags = ["--source", "abcd", "--beam", 3, "--n-best"]
    answer = json.loads(printed(sample.main, trained, *flags, 3, "--json"))
    scores = [target["score"] for target in answer["targets"]]
    assert answer["source"] == "abcd"
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert max(scores) < 0
    assert len({target["text"] for target in answer["targets"]}) == 3
    expected = [f"{target['score']:.4f}\t{target['text']}" for target in answer["targets"]]
    assert printed(sample.main, trained, *flags, 3).splitlines() == expected
    assert printed(sample.main, trained, *flags, 2).splitlines() == expected[:2]
    # One source and one target: the target alone.
    assert printed(sample.main, trained, *flags[:-1]) == answer["targets"][0]["text"] + "\n"
    assert set(answer["targets"][0]["text"].split()) <= set("ABCD")


def test_the_length_penalty_changes_scores(trained: Path, printed: Printed) -> None:
    flags = ["--source", "abcd", "--json", "--length-penalty"]
    for penalty in (0, 1):
        (target,) = json.loads(printed(sample.main, trained, *flags, penalty))["targets"]
        assert (target["score"] == target["log_probability"]) == (penalty == 0)


@pytest.mark.parametrize("through", ["file", "stdin"])
def test_sources_from_a_file(
    trained: Path,
    printed: Printed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    through: str,
) -> None:
    raw = b"\xef\xbb\xbfabcd\n\n  dcba \nab\r\n"
    (tmp_path / "sources.txt").write_bytes(raw)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    path = "-" if through == "stdin" else tmp_path / "sources.txt"
    lines = printed(sample.main, trained, "--source-file", path).splitlines()
    sources = ["abcd", "dcba", "ab"]
    assert [line.split("\t")[0] for line in lines] == sources
    for source, line in zip(sources, lines, strict=True):
        alone = printed(sample.main, trained, "--source", source)
        assert line == f"{source}\t{alone.rstrip()}"


def test_cross_attention_is_drawn(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.png"
    flags = ["--source", "abcd", "--attention", str(path), "--beam", "3", "--n-best", "3"]
    sample.main([str(trained), *flags])
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 3
    assert f"attention: {path}" in output.err
    assert matplotlib.image.imread(path).ndim == 3
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_a_bad_source_does_not_end_a_conversation(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abQ\n\nabcdabcda\nabcd\n"))
    sample.main([str(trained), "--interactive", "--json"])
    output = capsys.readouterr()
    (line,) = (line for line in output.out.splitlines() if line)
    assert json.loads(line)["source"] == "abcd"
    refusals = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(refusals) == 3
    for refusal, words in zip(refusals, ("'Q' at 2", "has 0 tokens", "has 9 tokens"), strict=True):
        assert words in refusal


# --- bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--prompt ab", ["--prompt is not for ", "turns sources into targets; give it --source"]),
        ("--prompt-file x", ["--prompt-file is not for "]),
        ("--num-samples 2 --source ab", ["--num-samples is not for "]),
        ("--greedy --source ab", ["--greedy is not for "]),
        ("--source ab --beam 2 --n-best 3", ["--n-best is 3, but must be in [1, --beam 2]"]),
        ("--source ab --n-best 0", ["--n-best is 0"]),
        ("--source ab --beam 0", ["--beam is 0, but must be in [1, 100]"]),
        ("--source ab --length-penalty -1", ["--length-penalty is -1.0"]),
        ("", ["--source is missing; give one, or --source-file FILE"]),
        ("--source ab --source-file x", ["--source and --source-file are two inputs; give one"]),
        ("--source-file /nowhere", ["--source-file /nowhere: No such file or directory"]),
        ("--source abQ", ["the source 'abQ'", "'Q' at 2", "'abcd'"]),
        ("--source a\udcff", ["the source is not UTF-8 at position 1"]),
        ("--source ab --temperature 0.5", ["--temperature is not for "]),
        ("--source ab --seed 5", ["--seed is not for "]),
        ("--source ab --interactive", ["--source is not for ", "asks for each line with"]),
        ("--source-file ab --interactive", ["--source-file is not for ", "--interactive; "]),
        ("--source abcdabcda", ["the source 'abcdabcda' has 9 tokens; the model reads 1 to 8"]),
        (
            "--source ab --attention /no/x.png",
            ["--attention /no/x.png cannot be written"],
        ),
        ("--interactive --attention x.png", ["--attention draws one source, not 0"]),
        ("--source ab --step 3", ["--step 3 is not there; ", " has best, latest, 4, 8"]),
        ("--sorce ab", ["--sorce", "--source"]),
        ("evaluate --beam 0", ["--beam is 0, but must be in [1, 100]"]),
        ("evaluate --length-penalty -1", ["--length-penalty is -1.0"]),
        ("evaluate --split train", ["--split", "'train'", "val"]),
        ("evaluate --step 3", ["--step 3 is not there; ", " has best, latest, 4, 8"]),
        ("evaluate --splitt val", ["--splitt", "--split"]),
    ],
)
def test_bad_flags_of_a_run_on_pairs(
    refused: Refused, trained: Path, flags: str, words: list[str]
) -> None:
    main = evaluate.main if flags.startswith("evaluate ") else sample.main
    line = refused(main, trained, *flags.removeprefix("evaluate ").split())
    for word in words:
        assert word in line


@pytest.mark.parametrize("flags", ["--source ab", "--source-file x", "--beam 2", "--n-best 2"])
def test_flags_of_pairs_are_not_for_a_run_on_text(
    refused: Refused, text_run: Path, flags: str
) -> None:
    line = refused(sample.main, text_run, *flags.split())
    flag = flags.split()[0]
    assert f"{flag} is not for {text_run}, which is a language model; give it --prompt" in line


@pytest.mark.parametrize(
    ("raw", "flags", "words"),
    [
        (b"\n  \n\n", [], "has no sources, one a line"),
        (b"ab\xff\n", [], "is not UTF-8 at byte offset 2"),
        (b"\nabQ\nQ\n", [], "sources.txt, line 2: the source 'abQ'"),  # none can be read
        (b"ab\ncd\n", ["--attention", "x.png"], "draws one source, not 2; give one --source"),
    ],
)
def test_bad_files_of_sources(
    refused: Refused, trained: Path, tmp_path: Path, raw: bytes, flags: list[str], words: str
) -> None:
    path = tmp_path / "sources.txt"
    path.write_bytes(raw)
    assert words in refused(sample.main, trained, "--source-file", path, *flags)


def test_one_line_that_cannot_be_read_does_not_refuse_the_others(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sources.txt"
    # Lines end at \n alone, as in a .tsv file: not at U+2028, nor at a form feed.
    path.write_text("ab\n\nabQ\nab\u2028cd\nabcdabcda\ndc\ncd\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        sample.main([str(trained), "--source-file", str(path)])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.split("\n")[:-1]] == ["ab", "dc", "cd"]
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    for error, words in zip(
        errors,
        (
            "sources.txt, line 3: the source 'abQ': text has characters",
            "sources.txt, line 4: the source 'ab\\u2028cd': text has characters",
            "sources.txt, line 5: the source 'abcdabcda' has 9 tokens",
            "3 of the 6 sources could not be read; they are named above",
        ),
        strict=True,
    ):
        assert words in error


def test_only_a_run_can_be_evaluated(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path} is not a run directory" in refused(evaluate.main, tmp_path)
    assert "runs/none does not exist; runs here: none" in refused(evaluate.main, "runs/none")
    assert list(tmp_path.iterdir()) == []


def moved(run: Path, path: Path, to: Path) -> Path:
    """A copy of a run whose data is elsewhere now."""
    copy = Path(shutil.copytree(run, to))
    edit_run(copy / "config.json", "data", path=str(path))
    return copy


def test_an_evaluation_on_other_data_is_refused(
    refused: Refused, printed: Printed, trained: Path, dataset: PairData, tmp_path: Path
) -> None:
    """Its splits would be others, with sources that the run was trained on."""
    path = tmp_path / "pairs.tsv"
    copy = moved(trained, path, tmp_path / "run")
    assert f"{path}: No such file or directory" in refused(evaluate.main, copy)
    content = Path(dataset.source).read_text()
    path.write_text(content + "abab\tA B\n")  # of the same letters
    line = refused(evaluate.main, copy)
    assert f"{copy} was trained on other data: data sha256 {dataset.sha256[:12]} -> " in line
    path.write_text(content.replace("d", "x"))
    assert "was trained on other data" in refused(evaluate.main, copy)
    path.write_text(content)
    assert json.loads(printed(evaluate.main, copy, "--json"))["sources"] == 20


def test_jiwer_missing_is_one_line(
    refused: Refused, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    line = refused(evaluate.main, trained)
    assert "error rates need the package jiwer: pip install jiwer" in line

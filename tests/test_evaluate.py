"""What a run on pairs writes, how it is measured, and that a stopped one continues."""

import io
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from conftest import Refused

from gptjax import train
from gptjax.commands import evaluate, sample
from gptjax.data import batches, pairs
from gptjax.data import dataset as data
from gptjax.data.pairs import PairData, Pairs
from gptjax.data.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer
from gptjax.decoding.error_rates import NOTHING, pair_errors, separate_tokens
from gptjax.runs import report, run_directory

MAX_STEPS, EVAL_INTERVAL = 8, 4
CONFIG = """
from pathlib import Path
from gptjax.config import Config, OptimConfig, TrainConfig
from gptjax.config_encoders import EncoderDecoderConfig, PairsDataConfig

config = Config(
    model=EncoderDecoderConfig(
        n_layer=1, n_encoder_layer=1, n_head=2, n_embd=16, dropout=0.1,
        block_size=8, source_block_size=8,
    ),
    data=PairsDataConfig(path=Path({path!r}), tokenizer="word", val_fraction=0.2),
    optim=OptimConfig(learning_rate=1e-2),
    train=TrainConfig(
        max_steps={max_steps}, batch_size=16, micro_batch_size=8,
        eval_interval={eval_interval}, eval_batches=0, log_interval=1, sample_tokens=1,
    ),
)
"""
GPT_CONFIG = """
from pathlib import Path
from gptjax.config import Config, GPTConfig, TextDataConfig, TrainConfig

config = Config(
    model=GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8),
    data=TextDataConfig(path=Path({path!r})),
    train=TrainConfig(
        max_steps=2, batch_size=8, eval_interval=1, eval_batches=0, sample_tokens=0,
    ),
)
"""


# --- error rates


def distance(right: list[str], written: list[str]) -> int:
    """Levenshtein's, by the recursion that defines it."""
    row = list(range(len(written) + 1))
    for i, a in enumerate(right, 1):
        before, row = row, [i]
        for j, b in enumerate(written, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def expected_rates(of: Pairs, written: dict[str, str]) -> dict[str, float]:
    """The four rates by their definitions."""
    mistakes = tokens = first_mistakes = first_tokens = 0
    for source, text in written.items():
        distances = [(distance(t.split(), text.split()), i) for i, t in enumerate(of[source])]
        mistakes += min(distances)[0]
        tokens += len(of[source][min(distances)[1]].split())
        first_mistakes += distances[0][0]
        first_tokens += len(of[source][0].split())
    n = len(written)
    return {
        "wer": sum(text not in of[source] for source, text in written.items()) / n,
        "per": mistakes / tokens,
        "wer_single_reference": sum(t != of[source][0] for source, t in written.items()) / n,
        "per_single_reference": first_mistakes / first_tokens,
    }


def rates(record: dict[str, Any]) -> list[float]:
    names = ("wer", "per", "wer_single_reference", "per_single_reference")
    return [record[name] for name in names]


@pytest.mark.parametrize(
    ("targets", "written", "expected", "confusions"),
    [
        (["A B C D"], "A B C D", [0, 0, 0, 0], []),
        (["A B C D"], "A X C D", [1, 1 / 4, 1, 1 / 4], [["B", "X", 1]]),
        (["A B C D"], "A B D", [1, 1 / 4, 1, 1 / 4], [["C", NOTHING, 1]]),
        (["A B C D"], "A B C X D", [1, 1 / 4, 1, 1 / 4], [[NOTHING, "X", 1]]),
        (["A B C D"], "", [1, 1, 1, 1], [[x, NOTHING, 1] for x in "ABCD"]),
        (["A"], "A B C", [1, 2, 1, 2], [[NOTHING, "B", 1], [NOTHING, "C", 1]]),
        (["A A A"], "B B B", [1, 1, 1, 1], [["A", "B", 3]]),
        # Any target that is listed is right, and the nearest is what mistakes are counted against.
        (["A B", "A B C D"], "A B C D", [0, 0, 1, 1], []),
        (["A B", "A B C D"], "A B C X", [1, 1 / 4, 1, 1], [["D", "X", 1]]),
        (["A B", "C D"], "C X", [1, 1 / 2, 1, 1], [["D", "X", 1]]),
        (["A B C D", "A X"], "A Y", [1, 1 / 2, 1, 3 / 4], [["X", "Y", 1]]),
    ],
)
def test_rates_and_confusions_of_one_source(
    targets: list[str], written: str, expected: list[float], confusions: list[list[Any]]
) -> None:
    record = pair_errors({"s": targets}, {"s": written})
    assert record["sources"] == 1
    assert rates(record) == pytest.approx(expected)
    assert sorted(record["confusions"]) == sorted(confusions)


def test_rates_are_of_all_sources_together() -> None:
    of = {"s": ["A B C D"], "t": ["A"], "u": ["B", "C C"], "v": ["D D D"]}
    record = pair_errors(of, {"s": "A B C D", "t": "B", "u": "C C", "v": "D"})
    assert record["sources"] == 4
    # Not a mean of rates: 1 + 2 mistakes in 4 + 1 + 2 + 3 tokens, 5 in 9 against the first.
    assert rates(record) == pytest.approx([2 / 4, 3 / 10, 3 / 4, 5 / 9])
    assert record["confusions"] == [["D", NOTHING, 2], ["A", "B", 1]]


def test_only_what_was_written_is_measured() -> None:
    assert pair_errors({"s": ["A"], "t": ["B"]}, {"t": "B"})["sources"] == 1


def test_rates_equal_an_independent_levenshtein_s() -> None:
    rng = random.Random(0)

    def text() -> str:
        return " ".join(rng.choices("ABCD", k=rng.randint(1, 8)))

    of = {f"s{i}": list(dict.fromkeys(text() for _ in range(rng.randint(1, 3)))) for i in range(99)}
    written = {s: text() if rng.random() < 0.6 else rng.choice(of[s]) for s in of}
    written["s0"] = ""
    record, expected = pair_errors(of, written), expected_rates(of, written)
    for name, rate in expected.items():
        assert 0.1 < rate < 1
        assert record[name] == pytest.approx(rate), name
    # Few letters, so that all the confusions are listed: as many as there are mistakes.
    counts = [n for _, _, n in record["confusions"]]
    assert counts == sorted(counts, reverse=True)
    assert len({(a, b) for a, b, _ in record["confusions"]}) == len(counts) < 25
    assert all(a != b for a, b, _ in record["confusions"])
    nearest = [min(of[s], key=lambda t: distance(t.split(), written[s].split())) for s in of]
    assert sum(counts) == sum(
        distance(t.split(), written[s].split()) for s, t in zip(of, nearest, strict=True)
    )


def test_the_fifty_most_frequent_confusions_are_listed() -> None:
    of = {f"s{i}": [" ".join([f"A{i}"] * (i + 1))] for i in range(60)}
    record = pair_errors(of, {s: target.replace("A", "B") for s, (target,) in of.items()})
    assert record["confusions"] == [[f"A{i}", f"B{i}", i + 1] for i in range(59, 9, -1)]


def test_a_target_written_token_by_token_is_right_whatever_its_blanks() -> None:
    """Words are what blanks part: how many there were, no model of words can say."""
    of = pairs.parse_tsv("a\tX  Y\nb\tY\n", Path("x.tsv"))
    tok = WordTokenizer.train("\n".join(t for targets in of.values() for t in targets))
    assert separate_tokens(tok, of["a"][0]) == tok.decode(tok.encode(of["a"][0])) == "X Y"


def test_the_tokens_that_are_compared_are_the_model_s() -> None:
    assert separate_tokens(CharTokenizer(" ab"), "ab b") == "a b ␣ b"
    assert separate_tokens(ByteTokenizer(), "aü") == "a <195> <188>"


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
def gpt_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on text."""
    folder = tmp_path_factory.mktemp("gpt")
    text = "abcdefgh \n" + "".join(random.Random(0).choices("abcdefgh \n", k=990))
    (folder / "text.txt").write_text(text)
    (folder / "tiny.py").write_text(GPT_CONFIG.format(path=str(folder / "text.txt")))
    train.main(["--config", str(folder / "tiny.py"), "--run-dir", str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="module")
def dataset(trained: Path) -> PairData:
    loaded = data.load(run_directory.read_config(trained))
    assert isinstance(loaded, PairData)
    return loaded


# Calls `main` of a command, and returns what it printed on standard output.
Printed = Callable[..., str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def call(main: Callable[[list[str]], None], *argv: object) -> str:
        capsys.readouterr()
        main([str(argument) for argument in argv])
        return capsys.readouterr().out

    return call


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
    flags = ["--config", str(config_file), "--run-dir", str(run)]
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


def test_a_run_on_text_has_a_loss(gpt_run: Path, printed: Printed) -> None:
    record = json.loads(printed(evaluate.main, gpt_run, "--json"))
    assert record.keys() == {"run", "step", "parameters", "val_loss"}
    logged = losses(gpt_run)
    assert record["val_loss"] == pytest.approx(logged[record["step"], "val_loss"], rel=1e-5)
    assert logged[1, "val_loss"] != pytest.approx(logged[2, "val_loss"], rel=1e-5)
    text = printed(evaluate.main, gpt_run)
    assert f"val_loss {record['val_loss']:.4f}" in text


# --- sampling


def test_one_source_prints_its_target_alone(trained: Path, printed: Printed) -> None:
    text = printed(sample.main, trained, "--source", "abcd")
    answer = json.loads(printed(sample.main, trained, "--source", "abcd", "--json"))
    assert answer["source"] == "abcd"
    (target,) = answer["targets"]
    assert text == target["text"] + "\n"
    assert set(text.split()) <= set("ABCD")


def test_the_n_best_are_printed_with_their_scores(trained: Path, printed: Printed) -> None:
    flags = ["--source", "abcd", "--beam", 3, "--n-best"]
    answer = json.loads(printed(sample.main, trained, *flags, 3, "--json"))
    scores = [target["score"] for target in answer["targets"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert max(scores) < 0
    assert len({target["text"] for target in answer["targets"]}) == 3
    expected = [f"{target['score']:.4f}\t{target['text']}" for target in answer["targets"]]
    assert printed(sample.main, trained, *flags, 3).splitlines() == expected
    assert printed(sample.main, trained, *flags, 2).splitlines() == expected[:2]
    assert printed(sample.main, trained, *flags[:-1]) == answer["targets"][0]["text"] + "\n"


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
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3
    assert f"attention: {path}" in said.err
    assert matplotlib.image.imread(path).ndim == 3
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_a_bad_source_does_not_end_a_conversation(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abQ\n\nabcdabcda\nabcd\n"))
    sample.main([str(trained), "--interactive", "--json"])
    said = capsys.readouterr()
    (line,) = (line for line in said.out.splitlines() if line)
    assert json.loads(line)["source"] == "abcd"
    refusals = [line for line in said.err.splitlines() if line.startswith("error: ")]
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
        ("--source ab --beam 101", ["--beam is 101"]),
        ("--source ab --length-penalty -1", ["--length-penalty is -1.0"]),
        ("--source ab --length-penalty nan", ["--length-penalty is nan"]),
        ("", ["--source is missing; give one, or --source-file FILE"]),
        ("--source ab --source-file x", ["--source and --source-file are two inputs; give one"]),
        ("--source-file /nowhere", ["--source-file /nowhere: No such file or directory"]),
        ("--source abQ", ["the source 'abQ'", "'Q' at 2", "'abcd'"]),
        ("--source a\udcff", ["the source is not UTF-8 at position 1"]),
        ("--source ab --temperature 0.5", ["--temperature is not for "]),
        ("--source ab --attention .", ["--attention . must end in"]),
        ("--source abcdabcda", ["the source 'abcdabcda' has 9 tokens; the model reads 1 to 8"]),
        ("--source ab --attention x.bmp", ["--attention x.bmp must end in .png, .svg or .pdf"]),
        (
            "--source ab --attention /no/x.png",
            ["--attention /no/x.png must be a file in an existing"],
        ),
        ("--interactive --attention x.png", ["--attention draws one source, not 0"]),
        ("--source ab --step 3", ["--step 3 is not there; ", " has best, latest, 4, 8"]),
        ("--sorce ab", ["--sorce", "--source"]),
    ],
)
def test_bad_flags_of_a_run_on_pairs(
    refused: Refused, trained: Path, flags: str, words: list[str]
) -> None:
    line = refused(sample.main, trained, *flags.split())
    for word in words:
        assert word in line


@pytest.mark.parametrize("flags", ["--source ab", "--source-file x", "--beam 2", "--n-best 2"])
def test_flags_of_pairs_are_not_for_a_run_on_text(
    refused: Refused, gpt_run: Path, flags: str
) -> None:
    line = refused(sample.main, gpt_run, *flags.split())
    flag = flags.split()[0]
    assert f"{flag} is not for {gpt_run}, which is a language model; give it --prompt" in line


@pytest.mark.parametrize(
    ("raw", "flags", "words"),
    [
        (b"", [], "has no sources, one a line"),
        (b"\n  \n\n", [], "has no sources, one a line"),
        (b"ab\xff\n", [], "is not UTF-8 at byte offset 2"),
        (b"ab\nabQ\n", [], "'Q' at 2"),
        (b"ab\ncd\n", ["--attention", "x.png"], "draws one source, not 2; give one --source"),
    ],
)
def test_bad_files_of_sources(
    refused: Refused, trained: Path, tmp_path: Path, raw: bytes, flags: list[str], words: str
) -> None:
    path = tmp_path / "sources.txt"
    path.write_bytes(raw)
    assert words in refused(sample.main, trained, "--source-file", path, *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--beam 0", ["--beam is 0, but must be in [1, 100]"]),
        ("--length-penalty -1", ["--length-penalty is -1.0"]),
        ("--split train", ["--split", "'train'", "val"]),
        ("--step 3", ["--step 3 is not there; ", " has best, latest, 4, 8"]),
        ("--splitt val", ["--splitt", "--split"]),
    ],
)
def test_bad_flags_of_an_evaluation(
    refused: Refused, trained: Path, flags: str, words: list[str]
) -> None:
    line = refused(evaluate.main, trained, *flags.split())
    for word in words:
        assert word in line


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
    saved = json.loads((copy / "config.json").read_text())
    saved["data"]["path"] = str(path)
    (copy / "config.json").write_text(json.dumps(saved))
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

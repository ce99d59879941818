"""Error rates of pairs against an independent Levenshtein distance."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data import pairs
from gptjax.data.pairs import Pairs
from gptjax.data.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer
from gptjax.decoding.error_rates import NOTHING, pair_errors, separate_tokens

pytest.importorskip("jiwer", reason="an extra: pip install -e '.[evaluate]'")


def distance(right: list[str], written: list[str]) -> int:
    """Levenshtein distance, by the recursion that defines it."""
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
        (["A"], "A B C", [1, 2, 1, 2], [[NOTHING, "B", 1], [NOTHING, "C", 1]]),
        # Any target that is listed is right, and the nearest is what mistakes are counted against.
        (["A B", "A B C D"], "A B C D", [0, 0, 1, 1], []),
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


def test_rates_are_over_all_sources() -> None:
    of = {"s": ["A B C D"], "t": ["A"], "u": ["B", "C C"], "v": ["D D D"]}
    record = pair_errors(of, {"s": "A B C D", "t": "B", "u": "C C", "v": "D"})
    assert record["sources"] == 4
    # Not a mean of rates: 1 + 2 mistakes in 4 + 1 + 2 + 3 tokens, 5 in 9 against the first.
    assert rates(record) == pytest.approx([2 / 4, 3 / 10, 3 / 4, 5 / 9])
    assert record["confusions"] == [["D", NOTHING, 2], ["A", "B", 1]]


def test_only_what_was_written_is_measured() -> None:
    assert pair_errors({"s": ["A"], "t": ["B"]}, {"t": "B"})["sources"] == 1


texts = st.lists(st.sampled_from("ABCD"), min_size=1, max_size=8).map(" ".join)
references_and_hypotheses = st.lists(
    st.lists(texts, min_size=1, max_size=3, unique=True).flatmap(
        lambda targets: st.tuples(st.just(targets), st.sampled_from(targets) | texts | st.just(""))
    ),
    min_size=1,
    max_size=30,
)


@pytest.mark.slow
@settings(deadline=None, derandomize=True)
@given(references_and_hypotheses)
def test_rates_equal_an_independent_levenshtein_s(rows: list[tuple[list[str], str]]) -> None:
    of = {f"s{i}": targets for i, (targets, _) in enumerate(rows)}
    written = {f"s{i}": text for i, (_, text) in enumerate(rows)}
    record, expected = pair_errors(of, written), expected_rates(of, written)
    assert {name: record[name] for name in expected} == pytest.approx(expected)
    # Few letters, so that all the confusions are listed: as many as there are mistakes.
    counts = [n for _, _, n in record["confusions"]]
    assert counts == sorted(counts, reverse=True)
    assert len({(a, b) for a, b, _ in record["confusions"]}) == len(counts) < 25
    assert all(a != b for a, b, _ in record["confusions"])
    assert sum(counts) == sum(
        min(distance(target.split(), text.split()) for target in targets) for targets, text in rows
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

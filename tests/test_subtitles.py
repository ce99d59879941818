"""Subtitles: lines, times and markup."""

from gptjax.decoding.subtitles import LINE_LENGTH, lines, subtitles
from gptjax.decoding.word_alignment import Word

WORDS = (Word("one", 0.5, 0.9), Word("<two>", 1.0, 1.5), Word("three", 3661.25, 3662.0))


def test_srt():
    assert subtitles(WORDS, "srt") == (
        "1\n00:00:00,500 --> 00:00:01,500\none <two>\n\n2\n01:01:01,250 --> 01:01:02,000\nthree\n"
    )


def test_vtt():
    assert subtitles(WORDS, "vtt") == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.500\none &lt;two&gt;\n"
        "\n01:01:01.250 --> 01:01:02.000\nthree\n"
    )
    assert subtitles((), "vtt") == "WEBVTT\n"


def test_a_line_is_short_and_every_word_is_in_one():
    words = [Word(f"word{i}", i / 4, i / 4 + 0.2) for i in range(50)]
    joined = lines(words)
    assert max(len(line.text) for line in joined) <= LINE_LENGTH
    assert " ".join(line.text for line in joined) == " ".join(word.text for word in words)
    assert [line.start for line in joined] == sorted(line.start for line in joined)

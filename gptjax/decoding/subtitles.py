"""Subtitles of a transcript: SubRip (.srt) and WebVTT (https://www.w3.org/TR/webvtt1/)."""

from collections.abc import Sequence

from gptjax.decoding.word_alignment import Word

# A subtitle ends before it is longer than a line, or at a pause of so many seconds.
LINE_LENGTH, PAUSE = 42, 1.0


def lines(words: Sequence[Word]) -> list[Word]:
    """Words joined to lines, each with its start and end."""
    joined: list[Word] = []
    for word in words:
        last = joined[-1] if joined else None
        if (
            last is None
            or word.start - last.end > PAUSE
            or len(last.text) + 1 + len(word.text) > LINE_LENGTH
        ):
            joined.append(word)
        else:
            joined[-1] = Word(f"{last.text} {word.text}", last.start, word.end)
    return joined


def subtitles(words: Sequence[Word], kind: str) -> str:
    """A file of this kind, "srt" or "vtt"."""
    is_srt, cues = kind == "srt", []
    for i, line in enumerate(lines(words), 1):
        times = f"{_time(line.start, is_srt)} --> {_time(line.end, is_srt)}"
        cues.append(f"{i}\n" * is_srt + f"{times}\n{_escaped(line.text, is_srt)}\n")
    return "\n".join(cues if is_srt else ["WEBVTT\n", *cues])


def _time(seconds: float, is_srt: bool) -> str:
    """00:01:02,345 in SubRip, 00:01:02.345 in WebVTT."""
    ms = round(1000 * seconds)
    text = f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"
    return text.replace(".", ",") if is_srt else text


def _escaped(text: str, is_srt: bool) -> str:
    """WebVTT reads <, > and & as markup."""
    if is_srt:
        return text
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

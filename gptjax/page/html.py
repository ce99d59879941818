"""A page's one file: its programs, its style and its contents put together."""

import json
import re
from importlib import resources
from typing import Any

MODULES = (
    "layers",
    "attention",
    "model",
    "attribution",
    "weights",
    "tokenizer",
    "sampling",
    "pass",
    "audio",
    "alignment",
    "transcription",
    "drawing",
    "heads",
    "cross_map",
    "timeline",
    "token_text",
    "sampler_controls",
    "alternatives",
    "write",
    "self_attention",
    "residual",
    "switches",
    "look",
    "curve",
    "compare",
    "learn",
    "steps",
    "layer_steps",
    "forward",
    "pairs",
    "speech",
    "page",
)
"""web/NAME.js, each after those that it imports from."""


def page(contents: dict[str, Any]) -> str:
    """The HTML of a page. It needs no network: a rule of its own forbids it any."""
    web = resources.files("gptjax.page") / "web"
    # A "<" may be part of "</script>", at which a browser ends the script.
    content = json.dumps(contents, ensure_ascii=False).replace("<", "\\u003c")
    content = content.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    html = (web / "page.html").read_text("utf-8")
    parts = {
        "TITLE": _escape(contents["name"]),
        "STYLE": (web / "page.css").read_text("utf-8"),
        "CONTENTS": content,
        "PROGRAM": program(),
    }
    return re.sub("{{([A-Z]+)}}", lambda found: parts[found[1]], html)


def program() -> str:
    """The modules of web/ as one program, without their imports and exports."""
    web = resources.files("gptjax.page") / "web"
    texts = []
    for name in MODULES:
        text = (web / f"{name}.js").read_text("utf-8")
        text = re.sub(r'^import [^;]*? from "\./\w+\.js";\n', "", text, flags=re.MULTILINE)
        texts.append(f"// --- {name}.js\n\n" + re.sub(r"^export ", "", text, flags=re.MULTILINE))
    return "\n".join(texts)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")

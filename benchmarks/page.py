"""How long `gptjax page` takes, how large its pages are, and how fast they write in a browser.

    python -m benchmarks.page runs/gpt_cpu runs/gpt_cpu_10min --json docs/benchmarks/page-cpu.json

Needs Chromium and the package playwright. Runs are taken in turns. The model writes 400 characters
at temperature 0.8, as the tab Write does, without drawing them.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import environment, records

FORMS = "int8", "float32"
WRITE = """() => {
    const { run, Writer, choose, probabilities, random } = gptjax;
    const draw = random(1), sampler = { temperature: 0.8, topK: 0, topP: 1 };
    const writer = new Writer(run.config, run.params, [run.tokenizer.start]);
    const start = performance.now();
    for (let i = 0; i < 400; i++) {
        writer.append(choose(probabilities(writer.logits, sampler), draw()));
    }
    return 400_000 / (performance.now() - start);
}"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of language models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args(argv)
    command = "python -m benchmarks.page " + " ".join(sys.argv[1:] if argv is None else argv)
    record = {"command": command, "environment": environment.describe()}
    record["rows"] = measure(arguments.runs, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


def measure(runs: list[Path], rounds: int) -> list[dict[str, Any]]:
    """A row for each run and form: medians of the seconds, and of characters per second."""
    from playwright.sync_api import sync_playwright

    rows = {(run, form): {"run": run.name, "weights": form} for run in runs for form in FORMS}
    figures: dict[Any, dict[str, list[float]]] = {
        key: {"make_seconds": [], "open_seconds": [], "characters_per_second": []} for key in rows
    }
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = launch(playwright)
        for i in range(rounds):
            for (run, form), found in figures.items():
                path = Path(folder) / f"{run.name}-{form}.html"
                start = time.perf_counter()
                command = [sys.executable, "-m", "gptjax", "page", str(run), "--weights", form]
                subprocess.run([*command, "--out", str(path)], check=True, capture_output=True)
                found["make_seconds"].append(time.perf_counter() - start)
                rows[run, form]["bytes"] = path.stat().st_size
                page = browser.new_page()
                start = time.perf_counter()
                page.goto(path.as_uri())
                while not page.evaluate("!!globalThis.gptjax"):
                    time.sleep(0.005)
                found["open_seconds"].append(time.perf_counter() - start)
                found["characters_per_second"].append(page.evaluate(WRITE))
                rows[run, form]["parameters"] = page.evaluate("gptjax.run.contents.parameters")
                page.close()
            print(f"round {i + 1} of {rounds}", file=sys.stderr, flush=True)
        browser.close()
    return [
        rows[key] | {name: statistics.median(values) for name, values in found.items()}
        for key, found in figures.items()
    ]


def launch(playwright: Any) -> Any:
    """A headless Chromium."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    flags = ["--no-sandbox", "--disable-gpu"]
    return playwright.chromium.launch(executable_path=executable, args=flags)


def table(record: dict[str, Any]) -> str:
    header = ["run", "parameters", "weights", "size", "made in", "opens in", "characters/s"]
    rows = [
        [
            row["run"],
            f"{row['parameters']:,}",
            row["weights"],
            f"{row['bytes'] / 1e6:.2f} MB",
            f"{row['make_seconds']:.1f} s",
            f"{row['open_seconds']:.2f} s",
            f"{row['characters_per_second']:,.0f}",
        ]
        for row in record["rows"]
    ]
    return records.table(header, rows)


if __name__ == "__main__":
    main()

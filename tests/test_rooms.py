"""The structure of the package: imports point down, without circles, and no file is too long."""

import ast
import graphlib
import tomllib
from pathlib import Path

import pytest

from gptjax.page import html

REPO = Path(__file__).parents[1]

# Rooms from low to high. A module may import from its own line and from the lines above it.
ORDER = """
signals errors atomic checksums reading json_files drawing
config_mesh config config_encoders config_checks config_json launch config_files command_line
scale.devices
kernels quantization
layers cache rotary short_conv fused_attention attention cross_attention gpt bigram
encoder_decoder speech_recognizer ensemble models
scale
muon optim training evaluation
data
decoding
runs
quantization.fine_tuning quantization.card
interop
page
commands train setup pace
api cli __main__
"""
LEVELS = {room: i for i, line in enumerate(ORDER.strip().splitlines()) for room in line.split()}
MOST_LINES = 320


def module_name(path: Path) -> str:
    """gptjax/data/texts.py -> data.texts; gptjax/data/__init__.py -> data."""
    parts = path.relative_to(REPO / "gptjax").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(REPO.glob("gptjax/**/*.py"))}
MODULES = sorted(name for name in FILES if name)  # without gptjax itself


def imports(module: str) -> set[str]:
    """The modules of gptjax that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            # `from gptjax.data import texts` imports a module or a name of gptjax/data/__init__.py.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "gptjax":
                continue
            while parts and ".".join(parts[1:]) not in FILES:
                parts.pop()
            found.add(".".join(parts[1:]))
    return found - {"", module}


def room(module: str) -> str:
    """The entry of ORDER that a module belongs to."""
    return module if module in LEVELS else module.partition(".")[0]


def circle(graph: dict[str, set[str]]) -> str:
    """A circle of the graph as "a -> b -> a"; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return " -> ".join(reversed(error.args[1]))
    return ""


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in MODULES} == set(LEVELS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    level = LEVELS[room(module)]
    assert [other for other in sorted(imports(module)) if LEVELS[room(other)] > level] == []


def test_no_circle_of_modules() -> None:
    assert circle({module: imports(module) for module in MODULES}) == ""


def test_no_circle_of_rooms() -> None:
    """Also between two rooms of one line."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        graph.setdefault(room(module), set()).update(map(room, imports(module)))
    assert circle({name: others - {name} for name, others in graph.items()}) == ""


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_read_in_one_sitting(module: str) -> None:
    n_lines = len(FILES[module].read_text().splitlines())
    assert n_lines <= MOST_LINES


def test_circles_and_imports_are_found() -> None:
    """The tests above can fail."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != ""
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ""
    assert {"command_line", "commands.sample_text"} <= imports("commands.sample")


def test_a_wheel_has_the_configurations_and_the_page():
    """It contains what the link gptjax/configs leads to, and what `gptjax page` puts together."""
    shipped = {path.name for path in (REPO / "gptjax/configs").glob("*.py")}
    assert shipped == {path.name for path in (REPO / "configs").glob("*.py")} != set()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    files = project["tool"]["setuptools"]["package-data"]["gptjax"]
    assert files == ["configs/*.py", "page/web/*.js", "page/web/page.*"]
    names = {path.stem for path in (REPO / "gptjax/page/web").glob("*.js")}
    assert names == set(html.MODULES)

"""Rules of the source tree: layers, loose modules, sizes, references to files and names of tests."""

import ast
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "htt_lightning"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"errors", "seeding"},
    {"output", "losses"},
    {"metrics"},
    {"tasks"},
    {"io"},
    {"models"},
    {"data"},
    {"discovery", "optimization"},
    {"module"},
    {"training"},
    {"callbacks", "predictor"},
    {"commands"},
    {"cli"},
]
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
LOOSE = {"errors", "seeding", "output", "losses", "module", "predictor", "__init__", "__main__"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_TEST_NAME = 350, 50, 60
REFERENCE = re.compile(r"(?<![\w./{}*<-])\w[\w./-]*\.(?:md|py|ya?ml)\b(?![\w*({])")
SUFFIXES = {".md", ".py", ".yaml", ".yml", ".ipynb", ".toml", ".svg", ".cff"}

WRITTEN = {
    "config.yaml",
    "run_record.yaml",
    "train_config.yaml",
    "test_metrics.md",
    "comparison.md",
    "configuration.md",
    "table.md",
    "mine.py",
}
"""Files that a program, the site's build or a notebook writes."""


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def imported(tree):
    """Names of the package's modules that a syntax tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


IMPORTS = {name: set(imported(ast.parse(path.read_text()))) - {name} for name, path in MODULES.items()}


def room(name):
    return name.split(".")[1] if "." in name else ""


def upward_imports():
    """Imports of a room of a higher layer; the package itself and its entry point stand above all rooms."""
    for name, others in IMPORTS.items():
        for other in others:
            if room(name) in LEVELS and (not room(other) or LEVELS.get(room(other), 0) > LEVELS[room(name)]):
                yield f"{name} -> {other}"


def test_imports_only_from_lower_layers():
    assert list(upward_imports()) == []


def test_imports_no_circle_between_files():
    order = list(TopologicalSorter(IMPORTS).static_order())  # raises an error that shows the circle
    assert set(order) == set(MODULES)


def test_rooms_are_known():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(LEVELS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == LOOSE


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_are_short(path):
    lines = path.read_text().count("\n")
    assert lines <= MAX_FILE_LINES
    assert [node.name for node, lines in functions(path) if lines > MAX_FUNCTION_LINES] == []


def tracked():
    """Files of the repository, by git or, in a source distribution, all there are."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    paths = (
        listed.stdout.splitlines() if listed.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    )
    return [path for path in paths if (ROOT / path).is_file()]


FILES = tracked()
TEXTS = [path for path in FILES if Path(path).suffix in SUFFIXES or path in ("Makefile", ".ci/run")]


def missing_references(path):
    """References of a text to files that are not in the repository; tests may name files that they write."""
    for reference in REFERENCE.findall((ROOT / path).read_text()):
        is_page = reference.endswith(".md")
        known = Path(reference).name in WRITTEN or any(f"/{file}".endswith(f"/{reference}") for file in FILES)
        if not known and (is_page or not path.startswith(("tests/", "tools/"))):
            yield reference


@pytest.mark.parametrize("path", TEXTS)
def test_references_name_files_of_the_repository(path):
    assert set(missing_references(path)) == set()


def test_names_of_tests_are_short():
    names = [
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node, _ in functions(path)
        if (name := node.name).startswith("test_") and len(name) > MAX_TEST_NAME
    ]
    assert names == []

"""Every module can be imported first and alone, so that no order of imports matters."""

import ast

import pytest

from tests.conftest import ROOT
from tests.test_packaging import run

PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "htt_lightning").rglob("*.py"))
}

ALONE = """
import importlib, os, sys, traceback, types

others, names, folder = sys.argv[1].split(), sys.argv[2].split(), sys.argv[3]
for other in others:
    importlib.import_module(other)
assert not [name for name in sys.modules if name.startswith("htt_lightning")]
failed = []
for name in names:
    child = os.fork()
    if child == 0:
        if name != "htt_lightning":  # its own imports would come first, always in one order
            sys.modules["htt_lightning"] = types.ModuleType("htt_lightning")
            sys.modules["htt_lightning"].__path__ = [folder]
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(" ".join(failed) or None)
"""


def imported(path):
    """Return the modules that a module imports when it is imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in PATHS else node.module for name in inner)


GRAPH = {name: set(imported(path)) for name, path in PATHS.items()}


@pytest.mark.slow
def test_each_module_imports_alone(tmp_path):
    """Each in its own process, forked after the slow imports of other packages."""
    others = sorted(set().union(*GRAPH.values()) - set(PATHS))
    run("-c", ALONE, " ".join(others), " ".join(PATHS), ROOT / "htt_lightning", cwd=tmp_path, PYTHONPATH=str(ROOT))

"""Check the documentation: commands and configs are parsed, Python examples run."""

import importlib
import json
import re
import shlex
import sys
from unittest.mock import patch

import pytest
from jsonargparse import capture_parser
from lightning.pytorch.cli import LightningCLI

from htt_lightning.cli.entry import main, normalize_args
from htt_lightning.cli.lightning_cli import COMMANDS as OWN
from tests.conftest import ROOT

PAGES = [*sorted((ROOT / "docs").glob("*.md")), *map(ROOT.joinpath, ("README.md", "htt_lightning/data/README.md"))]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMAND_NAMES = "|".join([*LightningCLI.subcommands(), *OWN])
PROGRAM = re.compile(rf"(?:^|\s)(?:htt|lightning|-m htt_lightning) +((?:{COMMAND_NAMES}) .*)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SECTION = re.compile(FENCE.pattern + r"|^#+ ([^\n]+)$", FENCE.flags)


def blocks(page, *languages):
    return [body for _, language, body in FENCE.findall(page.read_text()) if language in languages]


def commands(page):
    """The words of every command in the page's code blocks; a variable of the shell stands for a number."""
    for body in blocks(page, "", "sh", "bash"):
        for line in quoted_lines(body.replace("\\\n", " ")):
            if found := PROGRAM.search(line):
                yield shlex.split(re.sub(r"\$\w+", "1", found[1]), comments=True)


def notebook_commands(book):
    """The words of every indented command in the texts of a notebook."""
    for cell in json.loads(book.read_text())["cells"]:
        for line in cell["source"] if cell["cell_type"] == "markdown" else ():
            if line.startswith("    htt "):
                yield shlex.split(line, comments=True)[1:]


def quoted_lines(text):
    """Lines, joined where a quote goes on."""
    whole = ""
    for line in text.splitlines():
        whole += line + " "
        if whole.split("#")[0].count("'") % 2 == 0:
            yield whole
            whole = ""


def programs():
    """The Python of every section that has some; its blocks run one after the other."""
    found = {}
    for page in sorted((ROOT / "docs").glob("*.md")):
        title = page.stem
        for _, language, body, heading in SECTION.findall(page.read_text()):
            title = f"{page.stem}: {heading}" if heading else title
            if language == "python":
                found[title] = found.get(title, "") + body
    return found


PROGRAMS = programs()
COMMANDS = {f"{page.stem}: {shlex.join(words)}": words for page in PAGES for words in commands(page)}
NOTEBOOKS = {f"{book.stem}: {shlex.join(words)}": words for book in BOOKS for words in notebook_commands(book)}


@pytest.fixture(scope="module")
def parsers():
    """The parser of every command."""

    def parser(*words):
        with patch.object(sys, "argv", ["htt", *words]):
            return capture_parser(main)

    return {name: parser(name) for name in (*LightningCLI.subcommands(), *OWN)}


def test_pages_have_commands_and_recipes():
    assert {"index", "concepts", "datasets", "cookbook", "metrics", "differences"} <= {page.stem for page in PAGES}
    assert "reproduction" in {page.stem for page in PAGES}
    assert len(COMMANDS) > 20
    assert len(NOTEBOOKS) > 4
    assert len([title for title in PROGRAMS if title.startswith("library: ")]) == 4


@pytest.mark.parametrize("words", (COMMANDS | NOTEBOOKS).values(), ids=[*COMMANDS, *NOTEBOOKS])
def test_command_is_valid(words, parsers, monkeypatch):
    monkeypatch.chdir(ROOT / "configs")  # packaged configs by their names
    given = normalize_args([re.sub(r".*/config\.yaml", "synthetic.yaml", word) for word in words])  # that of a run
    parsers[given[0]].parse_args(given[1:] if given[0] in OWN else given)


def test_configuration_page_has_the_options_of_every_command(monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("config_reference").reference()
    for option in ("--predictions.format", "--out", "--ckpt_path", "--checkpoint.monitor"):
        assert option in page


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.stem)
def test_config_is_valid(page, parsers, tmp_path):
    for body in blocks(page, "yaml"):
        if not body.startswith("--8<--"):  # a file of the package's own
            (tmp_path / "config.yaml").write_text(body)
            words = ["fit", f"--config={ROOT}/configs/nyud.yaml", "--data.root=.", f"--config={tmp_path}/config.yaml"]
            parsers["fit"].parse_args(words)


@pytest.mark.parametrize("title", PROGRAMS)
def test_python_example_runs(title, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))
    exec(compile(PROGRAMS[title], title, "exec"), {"__name__": "example"})
    assert list(tmp_path.iterdir()) == []

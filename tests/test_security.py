"""Files execute no code, and names from files lead to no path out of their folder."""

import ast
import contextlib
import re

import numpy as np
import pytest
import torch
import yaml

from htt_lightning.cli.entry import main
from htt_lightning.data.datasets.nyud40 import NYUD40
from htt_lightning.data.datasets.pascal_context import PASCALContext
from htt_lightning.data.pseudo_labels import PseudoLabelStore
from htt_lightning.errors import HTTError
from htt_lightning.models.backbone import Backbone
from htt_lightning.tasks import Task
from tests.conftest import ROOT
from tests.data.datasets import folder_tree, pascal_tree, test_nyud40
from tests.data.datasets.folder_tree import COLUMNS, LABELLED, rows_of, write_table
from tests.tiny import BACKBONE
from tools.damage_campaign.damage import MARKER, Bomb

pytestmark = pytest.mark.usefixtures("in_empty_folder")
PICKLES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pandas")
SHELLS = ("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn", "pty.spawn", "subprocess.get")
SAFE_YAML = ("yaml.safe_load", "yaml.safe_dump", "yaml.YAMLError")


def is_literal(call: ast.Call, key: str, value: bool) -> bool:
    given = [word.value for word in call.keywords if word.arg == key]
    return bool(given) and isinstance(given[0], ast.Constant) and given[0].value is value


def unsafe_calls(source: str) -> list[str]:
    """Return the calls of a source that may execute a file's or user's content, and imports that hide one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in (*PICKLES, "os", "yaml", "torch", "subprocess"):
            known = {"subprocess": {"PIPE", "Popen"}, "torch": {"Tensor", "nn"}}.get(node.module, set())
            found += [f"from {node.module} import {alias.name}" for alias in node.names if alias.name not in known]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        module, _, method = name.rpartition(".")
        wrong = (
            name in ("eval", "exec", "compile", "__import__")
            or (module in PICKLES and method in ("load", "loads", "open", "read_pickle", "Unpickler"))
            or name.startswith(SHELLS)
            or (module == "yaml" and name not in SAFE_YAML)
            or (name in ("torch.load", "torch.hub.load") and not is_literal(node, "weights_only", True))
            or (method == "load_from_checkpoint" and not is_literal(node, "weights_only", True))
            or (method in ("load", "load_file") and any(w.arg == "allow_pickle" for w in node.keywords)
                and not is_literal(node, "allow_pickle", False))
            or any(word.arg == "shell" and not is_literal(node, "shell", False) for word in node.keywords)
            or method in ("extractall", "unpack_archive", "mktemp")
        )  # fmt: skip
        if wrong:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


SOURCES = [path for folder in ("htt_lightning", "docs", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_have_no_unsafe_calls(path):
    assert unsafe_calls(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(file)", "marshal.loads(b'')", "pickle.Unpickler(file).load()", "torch.load(path)",
        "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)", "np.load(p, allow_pickle=True)",
        "eval(text)", "exec(text)", "__import__(name)", "os.system('ls')", "os.popen('ls')", "yaml.load(text)",
        "subprocess.run('ls', shell=True)", "Popen(words, shell=flag)", "yaml.full_load(text)",
        "HTTModule.load_from_checkpoint(path)", "from pickle import loads", "from os import system",
        "from torch import load", "archive.extractall(folder)", "from yaml import load",
    ],
)  # fmt: skip
def test_unsafe_calls_finds_each_kind(source):
    assert unsafe_calls(source)


def test_pickle_in_checkpoint_is_not_executed(tmp_path):
    """The same pickle is executed where it is trusted. The damage campaign gives such files to every reader."""
    torch.save({"state_dict": {}, "hyper_parameters": {"tasks": []}, "more": Bomb()}, "bomb.ckpt")
    with pytest.raises(SystemExit, match=r"bomb\.ckpt"):
        main(["predict", "--ckpt_path", "bomb.ckpt", "--data", "ImageFolder", "--data.root", "."])
    assert not (tmp_path / MARKER).exists()
    torch.load("bomb.ckpt", weights_only=False)["more"].close()
    assert (tmp_path / MARKER).exists()


def test_config_executes_nothing(tmp_path):
    (tmp_path / "bomb.yaml").write_text("data: !!python/object/apply:os.mkdir [executed]\n")
    with pytest.raises(SystemExit, match=r"bomb\.yaml.*no tags"):
        main(["fit", "--config", "bomb.yaml"])
    assert not (tmp_path / MARKER).exists()
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load((tmp_path / "bomb.yaml").read_text())


@pytest.mark.parametrize("path", ["os.system", "builtins.eval", "subprocess.Popen", "htt_lightning.cli.entry", ".os.x"])
def test_checkpoint_may_only_name_tasks(path):
    with pytest.raises(HTTError, match=re.escape(path)):
        Task.from_config({"class_path": path, "init_args": {}})


OUTSIDE = ["../outside.png", "train/../../outside.png", "/etc/passwd", "link/outside.png"]


@pytest.mark.parametrize("cell", OUTSIDE)
@pytest.mark.parametrize("column", [0, 1], ids=["image", "label"])
def test_table_cell_out_of_root_is_rejected(tmp_path, cell, column):
    root = folder_tree.write_tree(tmp_path / "root")
    folder_tree.save(tmp_path / "outside.png", np.zeros(folder_tree.SIZE, np.uint8))
    (root / "link").symlink_to(tmp_path)
    rows = rows_of(LABELLED)
    rows[1][column] = cell
    write_table(root, rows)
    data = folder_tree.folder(root, train="train.csv", label_files=COLUMNS)
    with pytest.raises(HTTError, match=r"train\.csv, line 3"):
        data.build_dataset("train")


@pytest.mark.parametrize("pattern", ["../*.png", "/etc/*", "train/../../*.png"])
def test_pattern_out_of_root_is_rejected(tmp_path, pattern):
    root = folder_tree.write_tree(tmp_path / "root")
    with pytest.raises(HTTError, match="train"):
        folder_tree.folder(root, train=pattern).build_dataset("train")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../../x"])
def test_pseudo_label_id_out_of_folder_is_rejected(tmp_path, name):
    with pytest.raises(HTTError, match=re.escape(name)):
        PseudoLabelStore(tmp_path / "completed").path(name)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "a\\b", "ä"])
def test_image_id_with_path_is_rejected(tmp_path, name):
    trees = {
        NYUD40: (test_nyud40.write_tree(tmp_path / "n"), "gt_sets/train.txt"),
        PASCALContext: (pascal_tree.write_tree(tmp_path / "p"), "ImageSets/Context/train.txt"),
    }
    for kind, (root, listing) in trees.items():
        with (root / listing).open("a") as file:
            file.write(f"{name}\n")
        with pytest.raises(HTTError, match=r"train\.txt"):
            kind(root, "train")


@pytest.mark.parametrize("options", [{"checkpoint_path": "bomb.pth"}, {"pretrained_cfg_overlay": {"file": "bomb.pth"}}])
@pytest.mark.parametrize("pretrained", [False, True, "bomb.pth"])
def test_backbone_options_execute_no_pickle(tmp_path, options, pretrained):
    """Such options may also come from a checkpoint."""
    torch.save(Bomb(), "bomb.pth")
    with contextlib.suppress(HTTError):  # an unused file is no error
        Backbone(BACKBONE, pretrained, options)
    assert not (tmp_path / MARKER).exists()

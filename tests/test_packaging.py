import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string

import pytest
import yaml

import htt_lightning
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*words, cwd, **environment):
    """Run this Python away from the checkout; its output is the message of a failure."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_", "COVERAGE"))}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=variables | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from the working tree, without asking any registry."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    run("-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"htt_lightning-{PROJECT['version']}"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds the wheel's content alone."""
    target = tmp_path_factory.mktemp("installed")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-compile"]
    run(*pip, "--target", target, wheel, cwd=target)
    return target


def test_wheel_contains_sources_data_and_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "htt_lightning"
    sources = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    data = {"htt_lightning/py.typed", "htt_lightning/tasks/normal_directions.csv"}
    configs = {f"htt_lightning/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) >= 2
    assert sources | data | configs <= names
    assert {name.split("/")[0] for name in names} == {"htt_lightning", f"htt_lightning-{PROJECT['version']}.dist-info"}


def test_sdist_builds_the_same_wheel_and_contains_tests(sdist, wheel, tmp_path):
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, sdist, cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / wheel.name) as ours, zipfile.ZipFile(wheel) as theirs:
        contents = [{name: archive.read(name) for name in archive.namelist()} for archive in (ours, theirs)]
    assert contents[0] == contents[1]
    kept = [
        path.relative_to(ROOT)
        for folder in ("tests", "tools", "benchmarks", ".ci")
        for path in (ROOT / folder).rglob("*")
    ]
    lost = [path for path in kept if path.suffix in (".npz", ".py", ".xz") and not (sdist / path).is_file()]
    assert lost == []
    assert (sdist / "Makefile").read_text() == (ROOT / "Makefile").read_text()


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"htt_lightning-{PROJECT['version']}.dist-info/"
        metadata = message_from_string(archive.read(info + "METADATA").decode())
        commands = archive.read(info + "entry_points.txt").decode()
        licence = archive.read(info + "licenses/LICENSE").decode()
    assert metadata["Name"] == "htt-lightning"
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert licence == (ROOT / "LICENSE").read_text()
    assert set(PROJECT["optional-dependencies"]) == set(metadata.get_all("Provides-Extra"))
    for command in ("htt", "lightning"):
        assert f"{command} = htt_lightning.cli:main" in commands


@pytest.mark.slow
def test_installed_wheel_trains_by_packaged_configs(installed, tmp_path):
    """The run leaves no files."""
    # -P keeps the working directory off the path; PYTHONPATH comes before an editable install.
    code = "from importlib.util import find_spec; print(find_spec('htt_lightning').origin)"
    origin = run("-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).strip()
    assert origin == str(installed / "htt_lightning" / "__init__.py")
    options = {
        "trainer.fast_dev_run": 1,
        "trainer.accelerator": "cpu",
        "model.backbone": "test_resnet",
        "model.pretrained": "false",
        "model.token_dim": 8,
        "data.image_size": "[32,48]",
        "data.batch_size": 2,
        "data.train_images": 12,
        "data.val_images": 2,
        "data.cache": "null",
        "data.num_workers": 0,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    fit = ["-P", "-m", "htt_lightning", "fit", "--config", "synthetic.yaml", "--config", "loggers/wandb.yaml", *words]
    run(*fit, cwd=tmp_path, PYTHONPATH=str(installed))
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.slow
def test_package_imports_without_logger_services(tmp_path):
    """timm imports them where it can, so that ``sys.modules`` alone would not tell."""
    blocked = dict.fromkeys(["wandb", "tensorboard", "pandas", "pytorch_lightning"])
    run("-c", f"import sys; sys.modules.update({blocked}); import htt_lightning.cli", cwd=tmp_path)


def test_sources_import_lightning_by_one_name():
    for path in sorted((ROOT / "htt_lightning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("pytorch_lightning", "wandb")], path


def test_version_is_the_same_everywhere():
    assert htt_lightning.__version__ == PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert not released or released[0] == PROJECT["version"]


@pytest.mark.slow
def test_importing_transforms_opens_no_connection():
    code = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        print("network:", event, args)
sys.addaudithook(watch)
import htt_lightning.data.transforms
"""
    env = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "network" not in ran.stdout

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


def test_the_wheel_carries_everything_the_package_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "htt_lightning"
    sources = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    data = {"htt_lightning/py.typed", "htt_lightning/tasks/normal_directions.csv"}
    configs = {f"htt_lightning/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) >= 2
    assert sources | data | configs <= names
    assert {name.split("/")[0] for name in names} == {"htt_lightning", f"htt_lightning-{PROJECT['version']}.dist-info"}


def test_the_source_distribution_makes_the_same_wheel_and_brings_its_tests(sdist, wheel, tmp_path):
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, sdist, cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / wheel.name) as ours, zipfile.ZipFile(wheel) as theirs:
        contents = [{name: archive.read(name) for name in archive.namelist()} for archive in (ours, theirs)]
    assert contents[0] == contents[1]
    kept = [
        path.relative_to(ROOT)
        for folder in ("tests", "tools", "benchmarks", ".ci")
        for path in (ROOT / folder).rglob("*")
    ]
    lost = [path for path in kept if path.suffix in (".py", ".xz") and not (sdist / path).is_file()]
    assert lost == []
    assert (sdist / "Makefile").read_text() == (ROOT / "Makefile").read_text()


def test_the_wheel_says_what_it_is(wheel):
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


@pytest.fixture(scope="module")
def trial(installed, tmp_path_factory):
    """A folder in which the installed package has made a trial run by the names of packaged configs alone."""
    options = {
        "trainer.fast_dev_run": 1,
        "trainer.accelerator": "cpu",
        "model.backbone": "test_resnet",
        "model.token_dim": 8,
        "data.image_size": "[32,48]",
        "data.batch_size": 2,
        "data.train_images": 12,
        "data.val_images": 2,
        "data.cache": "null",
        "data.num_workers": 0,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    folder = tmp_path_factory.mktemp("elsewhere")
    fit = ["-P", "-m", "htt_lightning", "fit", "--config", "synthetic.yaml", "--config", "loggers/wandb.yaml", *words]
    run(*fit, cwd=folder, PYTHONPATH=str(installed))
    return folder


@pytest.mark.slow
def test_the_installed_wheel_is_imported_rather_than_the_checkout(installed, tmp_path):
    # -P keeps the working directory off the path; PYTHONPATH comes before an editable install.
    code = "from importlib.util import find_spec; print(find_spec('htt_lightning').origin)"
    assert run("-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).strip() == str(
        installed / "htt_lightning" / "__init__.py"
    )


@pytest.mark.slow
def test_the_installed_wheel_trains_by_configs_of_its_own(trial):
    assert trial.is_dir()


@pytest.mark.slow
def test_a_trial_run_of_the_installed_wheel_leaves_no_files(trial):
    assert list(trial.rglob("*")) == []


@pytest.mark.slow
def test_the_package_is_imported_where_the_logger_services_are_missing(tmp_path):
    """timm imports them where it can, so that ``sys.modules`` alone would not tell."""
    blocked = dict.fromkeys(["wandb", "tensorboard", "pandas", "pytorch_lightning"])
    run("-c", f"import sys; sys.modules.update({blocked}); import htt_lightning.cli", cwd=tmp_path)


def test_the_sources_import_lightning_by_one_name_and_no_logger_service():
    for path in sorted((ROOT / "htt_lightning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("pytorch_lightning", "wandb")], path


def test_one_version_is_told_everywhere():
    assert htt_lightning.__version__ == PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert not released or released[0] == PROJECT["version"]


@pytest.mark.slow
def test_importing_the_transforms_leaves_the_network_alone():
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

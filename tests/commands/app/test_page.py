"""The page in a browser: maps of a photograph, a rejection, and no other site."""

import os
import re
import shutil
import signal
import subprocess
import sys
from urllib.parse import urlparse

import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from tests.conftest import ROOT
from tests.data.test_pseudo_labels import FEW, store_truth
from tests.tiny import SCENES, tiny_data, tiny_module, tiny_trainer
from tools.kill_runs import Programs

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
OPTIONS = ["--data.image_size=[32,48]", "--data.train_images=12", "--data.val_images=4", f"--data.cache={SCENES.name}"]
OPTIONS += ["--data.seed=0", "--data.num_workers=0", *(f"--data.{key}={value}" for key, value in FEW.items())]
PROGRAM = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = args[0] if event == "socket.getaddrinfo" else args[1][0]
        if host not in ("127.0.0.1", "localhost"):
            print("network:", event, host, file=sys.stderr)
sys.addaudithook(watch)
from htt_lightning.cli import main
main()
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint, discovered labels and a photograph."""
    folder, data = tmp_path_factory.mktemp("app"), tiny_data(**FEW)
    keep = ModelCheckpoint(dirpath=folder / "kept", filename="run")
    tiny_trainer(folder, callbacks=[keep], enable_checkpointing=True).fit(tiny_module(data), data)
    shutil.copy(folder / "kept" / "run.ckpt", folder / "kept" / "second.ckpt")
    store_truth(folder / "pseudo", data)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    (folder / "temporary").mkdir()
    return folder


@pytest.fixture
def server(files):
    """The running program and the address of its page."""
    pytest.importorskip("gradio")
    words = ["app", "--ckpt_path=kept/run.ckpt", "--pseudo_labels=pseudo", "--browser=false", *OPTIONS]
    proxy = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"), "http://192.0.2.1:9")
    environment = os.environ | proxy | {"PYTHONPATH": str(ROOT), "TMPDIR": str(files / "temporary")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", PROGRAM, *words]
    with subprocess.Popen(command, cwd=files, env=environment, **pipes) as process:
        try:
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address, process.stderr.read()
            yield process, address[0]
        finally:
            process.kill()


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, headless=True, args=FLAGS)
        yield opened
        opened.close()


@pytest.mark.slow
def test_page_shows_maps_and_rejects_labels(browser, server, files):
    process, address = server
    assert urlparse(address).hostname == "127.0.0.1"
    page, asked = browser.new_page(), []
    page.set_default_timeout(60_000)
    page.on("request", lambda request: asked.append(urlparse(request.url)))
    page.goto(address)

    page.set_input_files("input[type=file]", files / "photo.png")
    page.wait_for_selector("#maps figure")
    assert page.locator("#maps figure").count() == 4
    (drawn,) = page.locator("#maps img[alt=depth]").all()
    opacity = "image => getComputedStyle(image).opacity"
    assert drawn.evaluate(opacity) == "0.7"
    page.locator("#opacity input[type=number]").fill("0.25")
    page.locator("#opacity input[type=number]").press("Enter")
    page.wait_for_function("getComputedStyle(document.querySelector('#maps img[alt=depth]')).opacity === '0.25'")

    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="kept/second").click()
    page.locator("#maps h3").get_by_text("kept/second.ckpt").wait_for()
    assert page.locator("#maps figure").count() == 8

    page.get_by_role("tab", name="Discovered labels").click()
    page.wait_for_selector("#panel img")
    reject = page.get_by_role("button", name=re.compile("^Reject")).first
    task = reject.inner_text().removeprefix("Reject ")
    manifest = files / "pseudo" / "manifest.json"
    before = manifest.read_text()
    reject.click()
    keep = page.get_by_role("button", name=f"Keep {task}")
    keep.wait_for()
    assert f'"{task}"' in manifest.read_text().partition('"rejected"')[2]
    assert "1 rejected" in page.locator("#description").inner_text()
    keep.click()
    page.get_by_role("button", name=f"Reject {task}").wait_for()
    assert manifest.read_text() == before
    page.get_by_role("button", name="Next").click()
    page.locator("#description").get_by_text("2 of").wait_for()

    assert {url.hostname for url in asked if url.scheme not in ("data", "blob")} == {"127.0.0.1"}
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=180)  # a busy machine
    assert "network:" not in messages
    assert process.returncode == 130
    assert not list((files / "temporary").glob("htt-app-*")), "uploads are deleted"


@pytest.mark.slow
def test_page_is_closed_to_other_hosts_and_names_its_port(server, files):
    import httpx

    _, address = server
    assert httpx.get(address).status_code == 200
    assert httpx.get(address, headers={"Host": "example.org"}).status_code == 400
    words = ["app", "--ckpt_path=kept/run.ckpt", f"--port={urlparse(address).port}", "--browser=false", *OPTIONS]
    attempt = Programs().run(files, words)
    assert attempt.status == 1
    assert "--port must be free" in attempt.printed

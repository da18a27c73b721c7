"""The interactive figures in JupyterLab, in a real browser: strokes are answered, sliders move."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest

from lib import paths

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MINUTES = 5 * 60_000  # at most, in milliseconds: a kernel that starts on a busy machine
CELL = """\
from types import SimpleNamespace
import numpy as np
import pandas as pd
import torch
from torch import nn
from lib import notebook, play
from lib.data import digits
from lib.learning import networks

images, labels = digits.load_digits_split("digits", "train")

class Templates(nn.Module):  # which class's mean image, seen from nine places, is nearest
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(1, 10, 28, padding=1)
        for digit in range(10):
            mean = images[labels == digit].mean(0)
            seen = nn.functional.avg_pool2d(mean, 3, 1, 1)
            self.head.weight.data[digit] = mean
            self.head.bias.data[digit] = -(seen**2).sum() / 2

    def forward(self, x):
        return self.head(x).mean((2, 3))

network = Templates().eval()
right = (network(images).argmax(1) == labels).float().mean()
print(f"{right:.2f} of the digits are read")
run = SimpleNamespace(attended=notebook.attended(), parameters={"seed": 0})
play.drawing(run, network, images[:1], "digits", "linear")
play.readings(run, network, images, labels, 0)
response = images[0]
rows = [("ink", t, 1 - t, t) for t in (0.1, 0.5, 0.9)]
table = pd.DataFrame(rows, columns=["method", "t", "only_strong", "without_strong"])
more = pd.DataFrame(rows, columns=table.columns).assign(method="less")
responses = {"ink": response, "less": response**2}
play.strong(run, network, images[:1], responses, pd.concat([table, more]), 0.0, "ink")

frames = {name: np.zeros((60, 80, 3), np.uint8) for name in ("small", "large")}
frames["small"][10:30, 10:30] = 200
frames["large"][10:50, 10:60] = 200
for frame in frames.values():
    frame[10:30, 30:75] = np.maximum(frame[10:30, 30:75], 20)

def box(above):
    rows, columns = np.nonzero(above)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1

play.crop(run, frames, (lambda frame: frame.max(2).astype(float), lambda above: above, box))
torch.manual_seed(0)
sequencer = networks.RadiomicSequencer().eval()
nn.init.normal_(sequencer.head.weight)
config = {"size": 32, "crop": True, "contrast": "none", "loss": "cross-entropy"}
config |= {"mean": [0.4, 0.2, 0.1], "std": [0.3] * 3}
play.lesions(run, sequencer, config, "phantom-9", "guided", seed=3)
lesions = np.zeros((1, 50, 50), bool)
lesions[0, 20, 20] = True
maps = {"near": np.roll(lesions, 2, 2) * 1.0, "on": lesions * 1.0}
play.tolerance(run, np.zeros((50, 50, 3)), maps, lesions, lesions | True, "near", 1.5)
small = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1))
explainers = {"image": lambda _, x: x[:, 0]}
explainers["weights"] = lambda network, x: network(x)[:, 0].detach().abs()
where = np.ones((2, 28, 28), bool)
play.random_layers(run, small, images[:2], np.zeros((28, 28, 3)), explainers, where, "image")
"""
SLIDERS = ["Test image", "Response", "Strong from", "Frame", "Threshold", "Drawn as", "Lesions",
           "Map", "Tolerance", "Map", "Random layers"]  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a JupyterLab with that notebook, and nothing of this user's settings."""
    folder = tmp_path_factory.mktemp("lab")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    (folder / "files").mkdir()
    nbformat.write(book, folder / "files" / "play.ipynb")
    settings = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "IPYTHONDIR")}
    quiet = folder / "JUPYTER_CONFIG_DIR" / "labconfig" / "page_config.json"
    quiet.parent.mkdir(parents=True)
    news = {"@jupyterlab/apputils-extension:announcements": True}
    quiet.write_text(json.dumps({"disabledExtensions": news}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--expose-app-in-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=play", f"--ServerApp.root_dir={folder / 'files'}"]
    environment = os.environ | settings | {"PYTHONPATH": str(paths.ROOT)}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(180):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=play", timeout=5)
                break
            except (urllib.error.URLError, TimeoutError):
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/lab/tree/play.ipynb?token=play"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def page(address):
    """The notebook in the browser, its cell run."""
    if not CHROMIUM:
        pytest.skip("no Chromium was found")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"Chromium cannot be driven: {error}")
        page = browser.new_page(viewport={"width": 1200, "height": 1400})
        page.set_default_timeout(MINUTES)
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", state="attached")
        page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
            " == 'idle'"
        )
        page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(
            "count => document.querySelectorAll('figure img').length == count"
            " || document.querySelector('.jp-OutputArea pre')?.innerText.includes('Error')",
            arg=7,
        )
        said = page.locator(".jp-OutputArea").first.inner_text()
        assert page.locator("figure img").count() == 7, said
        yield page
        browser.close()


def stroke(page, points):
    """Draw a line on the pad, points in shares of its side."""
    box = page.locator("canvas[aria-label]").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def test_strokes_are_answered_with_the_digit_and_a_cleared_pad_shows_the_example(page):
    answer = page.locator("[aria-live] figcaption")
    page.locator("canvas[aria-label]").scroll_into_view_if_needed()
    first = answer.inner_text()
    assert first.startswith("A digit of the test split")
    stroke(page, [(0.5, 0.1), (0.5, 0.9)])
    page.wait_for_function(
        "document.querySelector('[aria-live] figcaption').innerText.includes('Your drawing')"
    )
    ring = [(0.5, 0.1), (0.28, 0.25), (0.24, 0.5), (0.28, 0.75), (0.5, 0.9)]
    ring += [(1 - x, 1 - y) for x, y in ring]
    page.get_by_role("button", name="Clear the pad").click()
    page.wait_for_function(
        "text => document.querySelector('[aria-live] figcaption').innerText == text", arg=first
    )
    stroke(page, ring)
    page.wait_for_function(
        "document.querySelector('[aria-live] figcaption').innerText.includes('answered 0')"
    )
    assert re.search(r"answered 0 with probability \d+%", answer.inner_text())


def test_every_slider_has_words_and_moves_its_figure(page):
    sliders = page.locator(".widget-hslider")
    labels = [sliders.nth(i).locator(".widget-label").inner_text() for i in range(sliders.count())]
    assert labels == SLIDERS
    for i, label in enumerate(labels):
        slider = sliders.nth(i)
        panel = slider.locator("xpath=ancestor::*[contains(@class, 'widget-vbox')][1]")
        before = panel.locator("figcaption").inner_text()
        word = slider.locator(".widget-readout").inner_text()
        handle = slider.locator(".noUi-handle")
        handle.scroll_into_view_if_needed()
        handle.focus()
        at_the_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.press("ArrowLeft" if at_the_end else "ArrowRight")
        moved = "([panel, text]) => panel.querySelector('figcaption').innerText != text"
        page.wait_for_function(moved, arg=[panel.element_handle(), before])
        alt = panel.locator("img").get_attribute("alt")
        assert alt == panel.locator("figcaption").inner_text() != before, label
        assert slider.locator(".widget-readout").inner_text() != word


def test_a_saved_notebook_has_the_pictures_with_their_text(page, address):
    assert page.evaluate(
        "async () => { await window.jupyterapp.commands.execute('docmanager:save'); return true }"
    )
    token = {"Authorization": "token play"}
    at = address.split("/lab/")[0] + "/api/contents/play.ipynb?content=1"
    with urllib.request.urlopen(urllib.request.Request(at, headers=token)) as reply:
        [cell] = json.loads(reply.read())["content"]["cells"]
    shown = [output for output in cell["outputs"] if "data" in output]
    assert len(shown) == 7
    for output in shown:
        assert "image/png" in output["data"]
        assert len(output["metadata"]["image/png"]["alt"].split()) > 8

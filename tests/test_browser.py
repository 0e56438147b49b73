"The guidance explorer in a real browser: JupyterLab on loopback, chromium without a window, keyboard and mouse."
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = "63_guidance_explorer.ipynb"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LAB = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--IdentityProvider.token=",
       "--ServerApp.disable_check_xsrf=True", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=",
       "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]
WAIT = 240_000  # milliseconds: a busy machine is slow, and correctness must not depend on a timing


@pytest.fixture
def lab(tmp_path):
    "JupyterLab in a folder with the notebook, with settings of its own: all cells rendered, whether in view or not."
    (tmp_path / "work").mkdir()
    shutil.copy(ROOT / "nbs" / NOTEBOOK, tmp_path / "work" / NOTEBOOK)
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
              "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_CONFIG_DIR": "config", "IPYTHONDIR": "ipython"}
    environment = {**os.environ, **{name: str(tmp_path / folder) for name, folder in places.items()}}
    with open(tmp_path / "lab.log", "w") as log:
        command_line = [sys.executable, "-m", "jupyterlab", f"--port={port}"]
        command_line += [f"--ServerApp.root_dir={tmp_path / 'work'}", *LAB]
        server = subprocess.Popen(command_line, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urlopen(f"{url}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "lab.log").read_text()
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def page(lab):
    "A page whose errors and requests are written down."
    if CHROMIUM is None:
        pytest.skip("no chromium here; `apt-get install chromium` (or a Chrome on the PATH) makes this test run")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here; it comes with the extra dev")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.set_default_timeout(WAIT)
        page.errors, page.external = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        own = re.compile(rf"({lab}|ws{lab[4:]}|data:|blob:)")
        page.on("request", lambda request: None if own.match(request.url) else page.external.append(request.url))
        yield page
        browser.close()


def command(page, name, arguments=None):
    "A command of JupyterLab, waited for."
    page.evaluate("([name, args]) => window.jupyterapp.commands.execute(name, args || {})", [name, arguments])


def handle(page, description):
    "What one drags at the slider with this description."
    return page.locator(".widget-slider", has=page.get_by_text(description, exact=True)).locator(".noUi-handle").first


def test_the_explorer_answers_to_keyboard_and_mouse(lab, page):
    page.goto(f"{lab}/lab/tree/{NOTEBOOK}")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext")
    page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")
    command(page, "notebook:run-all-cells")
    image = page.locator("img.widget-image").first
    image.wait_for()
    page.get_by_text(re.compile(r"^12 steps in ")).first.wait_for()
    failed = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]', has_text="Error")
    assert failed.count() == 0, failed.first.inner_text()

    source = lambda: image.get_attribute("src")
    first = source()
    scale = handle(page, "guidance scale s")
    scale.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")                       # s from 2 to 3
    page.get_by_text("the paper's w = s − 1 = 2", exact=True).wait_for()
    page.wait_for_function("before => document.querySelector('img.widget-image').src !== before", arg=first)
    page.get_by_text(re.compile(r"^12 steps in ")).first.wait_for()
    assert source() != first and "conditional accuracy" in page.locator(".jp-Notebook").inner_text()

    handle(page, "steps").focus()
    page.keyboard.press("End")                                  # 200 steps: a long run
    page.get_by_text(re.compile(r"^step \d+ of 200$")).first.wait_for()  # it has begun, and nothing older runs any more
    page.get_by_role("button", name="Stop", exact=True).first.click()
    stopped = page.get_by_text(re.compile(r"^stopped after step \d+ of 200$")).first
    stopped.wait_for()
    assert int(re.findall(r"\d+", stopped.inner_text())[0]) < 200

    command(page, "apputils:change-theme", {"theme": "JupyterLab Dark"})
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    assert image.is_visible() and image.evaluate("image => image.naturalWidth") > 100
    assert page.errors == [] and page.external == []

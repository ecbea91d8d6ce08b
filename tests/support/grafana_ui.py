"""Grafana's own npm packages: its types as a check of dashboards, its components in a headless Chromium.

The packages stand in dashboards/check/node_modules, which is no part of the repository: they are installed from
package-lock.json when they are not there, or others.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "dashboards" / "check"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
INSTALL_S = 300


def run(*words, timeout_s=60):
    return subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, timeout=timeout_s, check=False)


def install():
    """The packages as package-lock.json has them; a moment where they are there already."""
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    stamp = FOLDER / "node_modules" / ".netprobe"
    with (FOLDER / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may want them
        if not stamp.exists() or stamp.read_text() != wanted:
            done = run("npm", "ci", timeout_s=INSTALL_S)
            assert done.returncode == 0, done.stderr
            stamp.write_text(wanted)


def type_errors(*files):
    """What tsc says of dashboards, by @grafana/schema's types; "" for nothing."""
    install()
    done = run("node", "check-types.mjs", *map(str, files))
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@contextmanager
def browser():
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  only those pay who look

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


def html(place, shown):
    """A page that renders panels, in one file.

    Args:
        place: folder for it.
        shown: `boards`, each with its `name` and `panels`, each of these with its `panel` and the `answers` to its
            queries; `from`, `to` in ms.
    """
    install()
    done = run("node", "build.mjs")
    assert done.returncode == 0, done.stderr + done.stdout
    text = json.dumps(shown).replace("<", "\\u003c")
    (place / "data.js").write_text(f"window.PANELS = {text};")
    for name in ("render.js", "render.css"):
        shutil.copy(FOLDER / "build" / name, place)
    page = place / "index.html"
    page.write_text(
        '<!doctype html><meta charset="utf-8"><title>waiting</title><link rel="stylesheet" href="render.css">'
        '<body style="margin:0"><div id="root"></div><script src="data.js"></script><script src="render.js"></script>'
    )
    return page

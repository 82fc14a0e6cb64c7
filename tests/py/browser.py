"""A real browser for the pages and pictures, by WebDriver: Debian's chromium with its driver."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TAB, ENTER, ESCAPE = "\ue004", "\ue007", "\ue00c"
LEFT, UP, RIGHT, DOWN = "\ue012", "\ue013", "\ue014", "\ue015"
HOME, END = "\ue011", "\ue010"


class Browser:
    """As much of WebDriver as is needed here."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"
        options = {"args": ["--headless=new", "--no-sandbox", "--window-size=1200,900"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self._session = ""
        self._session = "/session/" + self.call("/session", wanted)["sessionId"]

    def call(self, path: str, data: dict[str, Any] | None = None, method: str | None = None) -> Any:
        request = urllib.request.Request(
            self._root + self._session + path,
            None if data is None else json.dumps(data).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script: str) -> Any:
        return self.call("/execute/sync", {"script": script, "args": []})

    def open(self, page: Path, width: int = 1200, height: int = 900) -> None:
        self.call("/window/rect", {"width": width, "height": height})
        self.call("/url", {"url": page.as_uri()})

    def point(self, x: float, y: float) -> None:
        move = {"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}
        self.call("/actions", {"actions": [{"type": "pointer", "id": "p", "actions": [move]}]})

    def press(self, *keys: str) -> None:
        presses = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("/actions", {"actions": [{"type": "key", "id": "k", "actions": presses}]})


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        port = 0
        for line in server.stdout:
            if "started successfully on port" in line:
                port = int(line.rsplit(" ", 1)[1].rstrip(".\n"))
                break
        try:
            one = Browser(port)
            yield one
            one.call("", method="DELETE")
        finally:
            server.terminate()

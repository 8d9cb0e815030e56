"""A headless browser under remote control: what a page shows, and what its console says."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"]  # fmt: skip
CODES = {"Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
         "ArrowDown": 40, "Tab": 9}  # fmt: skip


@contextmanager
def browser(profile: Path) -> Iterator[str]:
    """A headless browser that nobody used before; the address of its first page's debugger."""
    assert BROWSER is not None
    with subprocess.Popen(
        [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
    ) as process:
        try:
            file = profile / "DevToolsActivePort"
            for _ in range(300):
                if file.exists() and len(file.read_text().split()) == 2:
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{file.read_text().split()[0]}/json"
        finally:
            process.terminate()


class Tab:
    """A page under remote control, and what its console said."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._asked = 0
        self.complaints: list[dict[str, Any]] = []

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._asked += 1
        await self._socket.send_json({"id": self._asked, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=30)
            if answer.get("id") == self._asked:
                return answer["result"]
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.complaints.append(answer)

    async def value(self, expression: str) -> Any:
        found = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    async def show(self, page: Path, width: int, scheme: str) -> None:
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.ask("Page.navigate", url=page.as_uri())
        for _ in range(100):
            if (
                await self.value("document.readyState") == "complete"
                and await self.value("location.protocol") == "file:"
            ):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the page did not load")

    async def press(self, key: str) -> None:
        """A key, as a person presses it."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=CODES[key], **text
            )

    async def shoot(self, path: Path, whole: bool = True) -> None:
        """A picture of the page, or of what of it is in view."""
        shot = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def tab(address: str) -> AsyncIterator[Tab]:
    """The first page of a browser."""
    async with aiohttp.ClientSession() as session:
        async with session.get(address) as answer:
            target = next(tab for tab in await answer.json() if tab["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            found = Tab(socket)
            for domain in ("Page", "Runtime", "Log"):
                await found.ask(f"{domain}.enable")
            yield found

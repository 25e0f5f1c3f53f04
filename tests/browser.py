"""A headless Chromium driven over its DevTools protocol: what a person would see, for tests and screenshots."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

_START_SECONDS = 30.0
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """One open page. `complaints` collects everything logged to its console, at any level."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def open(self, url: str) -> None:
        await self.tell("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression. Raises RuntimeError if it throws."""
        answer = await self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def wait(self, expression: str, seconds: float = 15.0) -> Any:
        """Wait until the expression is true, and return its value."""
        until = time.monotonic() + seconds
        while not (value := await self.value(expression)):
            if time.monotonic() > until:
                shown = await self.value("document.body.innerText")
                raise AssertionError(f"never true: {expression}\n{shown}\n{self.complaints}")
            await asyncio.sleep(0.05)
        return value

    async def look(
        self, *, width: int, height: int, dark: bool = False, scale: float = 1.0, phone: bool = False
    ) -> None:
        """Emulate a screen of this size, with this colour scheme."""
        await self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.tell("Emulation.setEmulatedMedia", features=[scheme])

    async def press(self, key: str, code: int) -> None:
        """Press a key, given with its virtual key code, such as ("Tab", 9)."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.tell("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    async def screenshot(self, file: Path) -> None:
        answer = await self.tell("Page.captureScreenshot", format="png")
        await asyncio.to_thread(file.write_bytes, base64.b64decode(answer["data"]))

    async def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(_START_SECONDS):
            return await answer

    async def listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if (number := said.get("id")) in self._answers:
                answer = self._answers.pop(number)
                if "error" in said:
                    answer.set_exception(RuntimeError(said["error"]["message"]))
                else:
                    answer.set_result(said["result"])
            elif said.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(said["params"])[:1000])


@asynccontextmanager
async def browse() -> AsyncIterator[Callable[[], Awaitable[Page]]]:
    """Run a browser with an empty profile and yield a function that opens pages. All its processes end afterwards."""
    chromium = find_chromium()
    assert chromium is not None, "there is no Chromium"
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(  # noqa: ASYNC220 -- quick enough here
            [
                *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync", "--no-proxy-server"),
                *("--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(folder) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session:
                readers: list[asyncio.Task[None]] = []

                async def open_page() -> Page:
                    async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                        url = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
                    page = Page(await session.ws_connect(url, max_msg_size=0))
                    readers.append(asyncio.get_running_loop().create_task(page.listen()))
                    for domain in ("Page", "Runtime", "Log"):
                        await page.tell(f"{domain}.enable")
                    return page

                try:
                    yield open_page
                finally:
                    for reader in readers:
                        reader.cancel()
                    await asyncio.gather(*readers, return_exceptions=True)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 10)
            if process.poll() is None:
                process.kill()
                process.wait()


async def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError, ValueError, IndexError):
            text = await asyncio.to_thread(file.read_text)
            return int(text.splitlines()[0])
        await asyncio.sleep(0.05)
    raise RuntimeError("Chromium did not start")

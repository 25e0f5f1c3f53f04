"""`python -m loadtests.screenshots`: take the README's screenshots of the dashboard while a swarm is running.

Needs a Chromium. Everything shown is real: nodes on this machine behind a stand-in Hub with a slow line.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.browser import Page, browse, find_chromium
from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

_IMAGES = Path(__file__).parents[1] / "docs" / "images"
_MIB = 1 << 20
_MODEL = "example/language-model-7b"
_SHARDS = [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
_OTHERS = {"example/embeddings": 30, "example/reranker": 12}  # MiB
_NODES = 5


async def take(folder: Path) -> None:
    with HubProcess(folder / "hub") as hub, ExitStack() as stack:
        hub.folder.commit(_MODEL, {name: os.urandom(120 * _MIB) for name in _SHARDS})
        for repo, size in _OTHERS.items():
            hub.folder.commit(repo, {"model.safetensors": os.urandom(size * _MIB), "config.json": b"{}"})
        hub.folder.commit("example/questions", {"train.parquet": os.urandom(5 * _MIB)}, repo_type="datasets")
        seed = stack.enter_context(NodeProcess(folder / "seed", hub.url))
        nodes = [seed] + [
            stack.enter_context(NodeProcess(folder / f"node-{n}", hub.url, "--seed", seed.mesh))
            for n in range(1, _NODES)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(32))

        def get(node: NodeProcess, path: str) -> None:
            ask(node.url + path, timeout=300)

        paths = [f"/{repo}/resolve/main/{name}" for repo in _OTHERS for name in ("model.safetensors", "config.json")]
        paths.append("/datasets/example/questions/resolve/main/train.parquet")
        await asyncio.gather(*(asyncio.to_thread(get, node, path) for path in paths for node in nodes[:3] * 3))

        shown = nodes[1]
        async with browse() as open_page:
            page = await open_page()
            await page.look(width=1100, height=900)
            await page.open(f"{shown.url}/-/")
            await page.wait("document.querySelectorAll('#peers li').length === 4")
            await page.value("document.querySelector('#repositories button').click()")
            hub.turn(bandwidth=24 * _MIB)
            running = [pool.submit(get, node, f"/{_MODEL}/resolve/main/{name}") for name in _SHARDS for node in nodes]
            await page.wait("document.querySelectorAll('.download canvas').length === 3")
            await page.wait("parseInt(document.querySelector('.download .detail').textContent) >= 40", 120)
            await _shoot(page, "dashboard-light.png")
            await page.look(width=1100, height=900, dark=True)
            await _shoot(page, "dashboard-dark.png")
            await page.look(width=390, height=844, dark=True, phone=True)
            await _shoot(page, "dashboard-phone.png")
            hub.turn(bandwidth=0)
            for answer in running:
                await asyncio.wrap_future(answer)


async def _shoot(page: Page, name: str) -> None:
    await asyncio.sleep(1.5)  # the page is redrawn with the next event
    await page.screenshot(_IMAGES / name)
    print(f"{_IMAGES / name}: {(_IMAGES / name).stat().st_size // 1000} kB")


def main() -> int:
    if find_chromium() is None:
        print("this needs a Chromium (apt-get install chromium)")
        return 1
    _IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-") as folder:
        asyncio.run(take(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

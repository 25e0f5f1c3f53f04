"""The dashboard in a real browser, during a real swarm."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from aiohttp import web

from proxy.admin.dashboard import Dashboard
from proxy.admin.metrics import Metrics
from proxy.admin.view import BlobView, DownloadView, PeerView
from tests.browser import browse, find_chromium
from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess
from tests.proxy.nodes import PaperNode

pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium (apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning"),
]

MIB = 1 << 20
BIG = random.Random(7).randbytes(96 * MIB)  # more than one node leases at a time, so both go to the origin

# Counts the pixels of the first piece map that have the colour of a custom property of the style sheet.
COUNT = """((name) => {
  const canvas = document.querySelector(".download canvas");
  if (!canvas || !canvas.width) return 0;
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  probe.fillRect(0, 0, 1, 1);
  const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
  const copy = document.createElement("canvas");
  copy.width = canvas.width; copy.height = canvas.height;
  const pen = copy.getContext("2d", { willReadFrequently: true });
  pen.drawImage(canvas, 0, 0);
  const points = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < points.length; i += 4) {
    if (points[i] === r && points[i + 1] === g && points[i + 2] === b && points[i + 3] === 255) count += 1;
  }
  return count;
})"""


@pytest.fixture
def nodes(hub: HubProcess, tmp_path: Path) -> Iterator[list[NodeProcess]]:
    """Three nodes that know each other."""
    hub.folder.commit("acme/tiny", {"model.safetensors": BIG, "config.json": b"{}"})
    with ExitStack() as stack:
        first = stack.enter_context(NodeProcess(tmp_path / "node-0", hub.url))
        others = [
            stack.enter_context(NodeProcess(tmp_path / f"node-{number}", hub.url, "--seed", first.mesh))
            for number in (1, 2)
        ]
        yield [first, *others]


async def test_a_swarm_is_seen_as_it_happens(hub: HubProcess, nodes: list[NodeProcess]) -> None:
    hub.turn(bandwidth=12 * MIB)
    first, second, third = nodes
    with ThreadPoolExecutor(3) as pool:
        async with browse() as open_page:
            page = await open_page()
            await page.open(f"{first.url}/-/")
            await page.wait("document.querySelectorAll('#peers li.alive').length === 2")
            assert await page.value("document.querySelector('#repositories').hidden")

            target = "/acme/tiny/resolve/main/model.safetensors"
            answers = [pool.submit(ask, node.url + target, timeout=90) for node in (first, second)]
            await page.wait("document.querySelectorAll('.download canvas').length === 1")
            await page.wait(f"{COUNT}('--origin') > 0 && {COUNT}('--missing') > 0")
            early = await page.value(f"{COUNT}('--missing')")
            await page.wait(f"{COUNT}('--peer') > 0", 30)
            await page.wait(f"{COUNT}('--missing') < {early}", 30)
            for answer in answers:
                assert (await asyncio.wrap_future(answer)).body == BIG
            await page.wait("document.querySelectorAll('.download').length === 0", 30)

            row = "document.querySelector('#repositories tbody tr')"
            await page.wait(f"{row} && {row}.cells[0].textContent === 'acme/tiny'")
            saved = await page.wait("parseFloat(document.querySelector('#saved').textContent)")
            assert 0 < saved < 100

            # With the keyboard alone: tab to the pin button and press it.
            await page.value("document.activeElement.blur()")
            await page.press("Tab", 9)
            assert await page.value("document.activeElement.textContent") == "pin"
            await page.press("Enter", 13)
            await page.wait("document.activeElement.textContent === 'pinned'")
            assert all(blob["is_pinned"] for blob in first.status()["blobs"])
            await page.press("Tab", 9)
            await page.press("Enter", 13)
            assert first.status()["blobs"], "one press asks whether it is meant"
            await page.press("Enter", 13)
            await page.wait(f"!{row}")
            assert not first.status()["blobs"]

            await asyncio.to_thread(third.stop)
            await page.wait("document.querySelectorAll('#peers li.alive').length === 1", 30)
            assert page.complaints == []


async def test_two_hundred_peers_and_five_hundred_blobs_do_not_slow_it(aiohttp_server) -> None:
    class Crowd(PaperNode):
        looks = 0

        def peers(self):
            return [PeerView(f"{n:032x}", f"10.0.{n}.1:8091", "peer", n % 9 > 0, 1.0) for n in range(200)]

        async def blobs(self):
            return [BlobView(f"sha256:{n:064x}", 10**9, 10**9, f"models/acme/m{n}", "w") for n in range(500)]

        def downloads(self):
            self.looks += 1  # different pieces each time, so everything is redrawn
            letters = "".join("op-.#"[(n * n + self.looks) // 7 % 5] for n in range(8000))
            return [
                DownloadView(f"d{n}", 8000 << 20, 4000 << 20, "models/acme/big", f"{n}.safetensors", n, 3, letters)
                for n in range(8)
            ]

    node = Crowd()
    app = web.Application()
    Dashboard(node, Metrics(node.stats), seconds=0.2).add_routes(app)
    server = await aiohttp_server(app)
    async with browse() as open_page:
        page = await open_page()
        await page.look(width=390, height=844, phone=True)
        await page.open(f"http://127.0.0.1:{server.port}/-/")
        await page.wait("document.querySelectorAll('#peers li').length === 200")
        await page.wait("document.querySelectorAll('#repositories tbody tr').length === 500")
        await page.wait("document.querySelectorAll('.download canvas').length === 8")
        assert await page.value("document.documentElement.scrollWidth <= innerWidth"), "a phone has to scroll sideways"
        shown = "document.querySelector('.download canvas').dataset.pieces"
        for _ in range(5):  # it keeps up: the display goes on changing, and the page has time to answer in between
            await page.wait(f"{shown} !== {json.dumps(await page.value(shown))}")
        assert page.complaints == []

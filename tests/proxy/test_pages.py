"""Clients in a browser: pages of another site read the Hub's name space as they would at the Hub, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.browser import browse, find_chromium
from tests.http import Answer, ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

REPO = "acme/tiny"
FILE, MISSING, INFO = f"/{REPO}/resolve/main/w.bin", f"/{REPO}/resolve/main/none.json", f"/api/models/{REPO}"
PATHS = f"/api/models/{REPO}/paths-info/main"
PAGE = "http://page.example:8000"

# Fetches a path as a page does that knows no more than what a script may see.
FETCH = """(async (path, options) => {
  try {
    const answer = await fetch(path, options);
    const names = ["X-Repo-Commit", "X-Error-Code", "Content-Range", "Link"];
    return [answer.status, await answer.text(), ...names.map((name) => answer.headers.get(name))];
  } catch (error) {
    return String(error);
  }
})"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    with HubProcess(tmp_path_factory.mktemp("hub") / "hub") as process:
        process.folder.commit(REPO, {"w.bin": bytes(range(256)), "config.json": b"{}"})
        process.folder.add_token("hf_alice", "alice")
        process.folder.create("acme/secret", private=True, readers=["alice"])
        process.folder.commit("acme/secret", {"w.bin": b"for alice"})
        yield process


@pytest.fixture(scope="module")
def node(hub: HubProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node") / "node", hub.url) as process:
        yield process


def preflight(url: str, method: str, fields: str = "authorization,range") -> Answer:
    return ask(url, "OPTIONS", Origin=PAGE, Access_Control_Request_Method=method, Access_Control_Request_Headers=fields)


@pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium (apt-get install chromium)")
async def test_a_page_of_another_port_reads_what_it_may_read_at_the_hub(
    hub: HubProcess, node: NodeProcess, aiohttp_server
) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<title>a page</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    server = await aiohttp_server(app)
    hub.turn(page_size=1)
    async with browse() as open_page:
        tab = await open_page()
        await tab.open(f"http://127.0.0.1:{server.port}/")
        await tab.wait("document.title === 'a page'")

        async def fetched(path: str, options: dict[str, object]) -> object:
            return await tab.value(f"{FETCH}('{node.url}{path}', {json.dumps(options)})")

        async def fetch(path: str, **options: object) -> list[object]:
            found = await fetched(path, options)
            assert isinstance(found, list), f"{path}: {found}"
            return found

        async def is_denied(path: str, **options: object) -> bool:
            return "Failed to fetch" in str(await fetched(path, options))

        alice = {"Authorization": "Bearer hf_alice", "Range": "bytes=4-8"}
        is_json = {"Content-Type": "application/json"}
        commit = (await fetch(FILE))[2]
        assert commit
        for _ in range(2):  # the second time it is known here
            assert (await fetch(MISSING))[::2] == [404, commit, None]
            assert (await fetch(MISSING))[3] == "EntryNotFound"
            status, body, *_ = await fetch(INFO)
            assert (status, f'"id": "{REPO}"' in str(body)) == (200, True)
            assert 'rel="next"' in str((await fetch(f"/api/models/{REPO}/tree/main"))[5])
        assert (await fetch("/acme/secret/resolve/main/w.bin", headers=alice))[:2] == [206, "alice"]
        assert (await fetch("/acme/secret/resolve/main/w.bin"))[0] == 401
        assert (await fetch(PATHS, method="POST", headers=is_json, body='{"paths": ["w.bin"]}'))[0] == 200
        assert (await fetch("/api/models?author=acme"))[0] == 200  # passed through

        for path in ("/-/", "/-/status", "/-/metrics", "/-/health", "/-/xet/v1/reconstructions/0", "/-/nothing"):
            assert await is_denied(path), path
            assert await is_denied(path, headers=alice), path
        assert await is_denied("/-/rm", method="POST", headers=is_json, body=json.dumps({"repo": REPO}))
        assert node.status()["blobs"]


def test_reads_are_permitted_of_the_hubs_name_space(hub: HubProcess, tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "node", hub.url, "--offline") as node:
        asked = [(FILE, "GET"), (MISSING, "HEAD"), (INFO, "GET"), (PATHS, "POST"), ("/api/models", "GET")]
        for path, method in asked:
            answer = preflight(node.url + path, method)
            assert answer.status == 204, path
            assert answer["Access-Control-Allow-Origin"] == "*"
            assert method in (answer["Access-Control-Allow-Methods"] or "")
            assert answer["Access-Control-Allow-Headers"] == "authorization,range"
        for path, method in [(FILE, "PUT"), (INFO, "DELETE"), ("/api/repos/create", "POST"), (FILE, "POST")]:
            answer = preflight(node.url + path, method)  # only the Hub could permit these
            assert (answer.status, answer["Access-Control-Allow-Origin"]) == (502, None), path
        for path in ("/-/status", "/-/rm", "/-/xet/xorbs/0/0", "/hf/-/xet/xorbs/0/0"):
            answer = preflight(node.url + path, "GET")
            assert (answer.status, answer["Access-Control-Allow-Origin"]) == (404, None), path
        for path in (FILE, MISSING, INFO, "/api/models"):  # there is no answer, and the page may read why
            answer = ask(node.url + path, Origin=PAGE)
            assert (answer.status, answer["Access-Control-Allow-Origin"]) == (502, "*"), path
        for path in ("/-/xet/v1/reconstructions/0", "/hf/-/xet/v1/reconstructions/0"):
            answer = ask(node.url + path, Origin=PAGE)
            assert (answer.status, answer["Access-Control-Allow-Origin"]) == (401, None), path
        refused = ask(node.url + "/api/repos/create", "POST", body=b"{}", Origin=PAGE)
        assert (refused.status, refused["Access-Control-Allow-Origin"]) == (502, None)


def test_a_name_that_is_not_ours_permits_nothing(node: NodeProcess) -> None:
    """A page that has its own name lead here (DNS rebinding) is of the same site, to its browser."""
    for method in ("GET", "OPTIONS"):
        answer = ask(node.url + FILE, method, Host="evil.example", Origin=PAGE, Access_Control_Request_Method="GET")
        assert (answer.status, answer["Access-Control-Allow-Origin"]) == (421, None)

"""An origin that is not quite the Hub, or another server in its place: nothing unproven is served or stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.catalog import File
from proxy.hub import errors
from proxy.hub.client import Client
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.metadata import FileMetadata
from proxy.hub.urls import Repo
from tests.http import ask
from tests.node import NodeProcess
from tests.proxy.parts import TINY, parts
from tests.stranger import COMMIT, Script, Stranger, file, git_sha1, said

BODY = b'{"hidden_size": 768}'


@contextmanager
def before(script: Script, tmp_path: Path, *flags: str) -> Iterator[tuple[Stranger, NodeProcess]]:
    """Run a whole node in front of an origin that answers by a script."""
    with Stranger(script) as origin, NodeProcess(tmp_path / "node", origin.url, *flags) as node:
        yield origin, node


async def test_what_is_said_to_be_empty_and_is_not_is_neither_served_nor_kept(tmp_path):
    """As from a proxy that answers a HEAD with `Content-Length: 0`: there would be no byte to check."""
    told = {"Content_Length": 0}
    large = {"X_Linked_Etag": f'"{hashlib.sha256(BODY).hexdigest()}"', "X_Linked_Size": 0, "Location": "/storage"}

    def script(method, target, headers):
        return said(302, X_Repo_Commit=COMMIT, **large) if "large" in target else file(BODY, **told)

    with Stranger(script) as origin:
        async with parts(origin.url, tmp_path) as node:
            for path in ("config.json", "large.bin"):
                with pytest.raises(OriginUnavailable, match="empty"):
                    await node.file(path)
                assert node.catalog.file(str(TINY), COMMIT, path) is None
            # Nor are such answers used that were cached before.
            node.catalog.set_file(str(TINY), COMMIT, "old.json", File(FileMetadata(git_sha1(BODY), 0), 1e12))
            with pytest.raises(OriginUnavailable, match="empty"):
                await node.file("old.json", revision=COMMIT)
            told.clear()
            assert (await node.file("config.json")).size == len(BODY)


def test_a_clients_strange_fields_are_nobody_elses_trouble(tmp_path):
    """Bytes above 127: in the User-Agent, which goes to the Hub with the next ranges too, and in a token."""
    with before(lambda method, target, headers: file(BODY), tmp_path) as (origin, node):
        at = f"{node.url}/{TINY.id}/resolve/main/config.json"
        assert ask(at, User_Agent="M\xfcller/1.0; hf_hub/2.4.0").body == BODY
        assert ask(at, User_Agent="hf_hub/2.4.0").body == BODY
        heard = len(origin.asked)
        for path in (
            f"/{TINY.id}/resolve/main/x",
            f"/api/models/{TINY.id}",
            f"/{TINY.id}/raw/main/x",
            "/api/whoami-v2",
        ):
            answer = ask(node.url + path, token="hf_\xfc")
            assert (answer.status, answer["X-Error-Code"]) == (401, None)
            assert answer["X-Error-Message"] == "Invalid credentials in Authorization header"
        assert len(origin.asked) == heard


async def test_fields_that_are_no_utf8_are_kept_and_told(tmp_path):
    name = b'inline; filename="caf\xe9.json"'

    def script(method, target, headers):
        if "gone" in target:
            return said(404, X_Error_Code="EntryGone", X_Error_Message=b"no caf\xe9", X_HF_Warning=b"a; caf\xe9")
        return file(BODY, Content_Disposition=name, Content_Type=b"text/\xe9")

    with Stranger(script) as origin:
        async with parts(origin.url, tmp_path) as node:
            found = (await node.file("caf\u00e9.json")).metadata
            assert (found.content_disposition, found.content_type) == (name.decode("latin-1"), "text/\u00e9")
            assert (await node.file("caf\u00e9.json")).outcome == "hit"
            with pytest.raises(HubError) as caught:
                await node.file("gone.json")
            assert errors.respond(caught.value, Client()).headers["X-HF-Warning"] == "a; caf\u00e9"
            assert caught.value.message == "no caf\u00e9"


@pytest.mark.parametrize(
    "answer",
    [
        *(
            said(302, X_Repo_Commit=COMMIT, X_Linked_Etag=f'"{"b" * 64}"', X_Linked_Size=7, Location=where)
            for where in ("http://[::1/x", "http://h:99999x/x", "http://:80/x", "ftp://h/x", "file:///etc/hosts", "")
        ),
        said(307, X_Repo_Commit=COMMIT, Location="http://[::1/x"),
        said(302, X_Repo_Commit=COMMIT, X_Linked_Etag=f'"{"b" * 64}"', X_Linked_Size="9" * 5000, Location="/x"),
    ],
)
async def test_what_cannot_be_read_is_no_answer(tmp_path, answer):
    with Stranger(lambda method, target, headers: answer) as origin:
        async with parts(origin.url, tmp_path) as node:
            with pytest.raises(OriginUnavailable, match=r"without a valid address|5 redirects in a row"):
                await node.file("config.json")


def test_an_error_names_a_time_in_plain_digits_or_none():
    for field, seconds in (("\u00b2", None), ("9" * 400, None), ("7", 7.0)):
        assert HubError.of(404, {"Retry-After": field}).retry_after == seconds


async def test_a_page_that_stands_in_for_the_hub_is_not_taken_for_a_file(tmp_path):
    """As from a captive portal, or during maintenance of the Hub: 200 for every request, even about a commit."""
    page = said(200, b"<h1>We will be back</h1>", ETag='"65e5f3a1-1d"', Content_Type="text/html")
    for answers in (
        [page],
        [said(307, Location="/page"), page],
        [file(BODY, X_Repo_Commit="b" * 40)],
        [file(BODY, X_Repo_Commit="")],
    ):
        coming = [*answers, *[file(BODY)] * 9]
        with Stranger(lambda *_, coming=coming: coming.pop(0)) as origin:
            async with parts(origin.url, tmp_path / origin.url[-5:]) as node:
                with pytest.raises(OriginUnavailable):
                    await node.file("config.json", revision=COMMIT)
                assert (await node.file("config.json", revision=COMMIT)).size == len(BODY), answers


async def test_a_mirrors_etags_are_told_and_not_kept(tmp_path):
    """An ETag that is not a digest proves no bytes: such a file is asked for each time, so it can be corrected."""
    tags = ['"65e5f3a1-1d"', '"65e5f3a1-1e"', f'"{git_sha1(BODY)}"']
    with Stranger(lambda method, target, headers: file(BODY, ETag=tags.pop(0))) as origin:
        async with parts(origin.url, tmp_path) as node:
            # Also when former versions cached it.
            node.catalog.set_file(str(TINY), COMMIT, "config.json", File(FileMetadata("old", 7), 1e12))
            for etag in ("65e5f3a1-1d", "65e5f3a1-1e", git_sha1(BODY)):
                found = await node.file("config.json", revision=COMMIT)
                assert (found.etag, found.outcome) == (etag, "miss")
            assert (await node.file("config.json", revision=COMMIT)).outcome == "hit"


@pytest.mark.parametrize("status", [401, 403, 404, 407])
async def test_what_a_filter_refuses_is_not_the_hubs_word(tmp_path, status):
    """The refusal is passed on only to clients that may not have an older answer, and it closes nothing."""
    weather = {"blocked": False}

    def script(method, target, headers):
        if weather["blocked"]:
            return said(status, b"<h1>blocked</h1>", Content_Type="text/html")
        if "private" in target and "authorization" not in headers:
            return said(401, X_Error_Message="Invalid username or password.")
        return file(BODY)

    private = Repo("models", "acme/private")
    with Stranger(script) as origin:
        async with parts(origin.url, tmp_path, named=0) as node:
            await node.file("config.json")
            await node.file("config.json", "hf_alice", repo=private)
            weather["blocked"] = True
            for _ in range(2):
                assert (await node.file("config.json")).outcome == "stale"
                assert (await node.file("config.json", "hf_alice", repo=private)).outcome == "stale"
                for repo, path in ((TINY, "new.json"), (private, "config.json")):
                    with pytest.raises(HubError) as caught:
                        await node.file(path, repo=repo)
                    assert caught.value.status == status
            weather["blocked"] = False
            assert (await node.file("new.json")).outcome == "miss"

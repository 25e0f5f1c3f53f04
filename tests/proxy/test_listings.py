"""A file that a tree has listed is not requested again if the Hub said that there is no gate, and only then."""

import pytest

from proxy.hub.errors import HubError
from proxy.hub.metadata import FileMetadata
from proxy.hub.urls import FileRoute
from proxy.listings import Listings
from proxy.resolve import Client
from tests.hub.process import HubProcess
from tests.proxy.parts import TINY, parts

SMALL, LARGE = b'{"a": 1}\n', b"weights" * 1000
ALICE, BOB = "hf_alice", "hf_bob"


@pytest.fixture
def hub(tmp_path):
    """A Hub with a public repository `acme/tiny`."""
    with HubProcess(tmp_path / "hub") as hub:
        hub.folder.add_token(ALICE, "alice")
        hub.folder.add_token(BOB, "bob")
        hub.folder.create(TINY.id)
        hub.folder.commit(TINY.id, {"config.json": SMALL, "model.safetensors": LARGE, "README.md": b"# card\n"})
        yield hub


def guard(hub, **settings: object) -> None:
    repo = hub.folder.load("models", TINY.id)
    for name, value in settings.items():
        setattr(repo, name, value)
    repo.readers = ["alice"]
    repo.save(hub.folder.folder("models", TINY.id))


def commit(hub) -> str:
    return hub.folder.load("models", TINY.id).refs["heads/main"]


async def list_all(node, sha: str, token: str | None = None) -> None:
    """Make the requests with which snapshot_download begins."""
    await node.ask("/api/models/acme/tiny/revision/main", token)
    await list_files(node, sha, token)


async def list_files(node, sha: str, token: str | None = None) -> None:
    await node.ask(f"/api/models/acme/tiny/tree/{sha}?recursive=true&expand=false", token)


def metadata_requests(hub) -> int:
    return hub.stats()["by_kind"].get("resolve", 0)


async def test_listed_files_are_told_as_the_hub_would_without_asking(hub, tmp_path):
    async with parts(hub.url, tmp_path / "asked") as asking, parts(hub.url, tmp_path / "told") as node:
        await list_all(node, commit(hub))
        for path in ("config.json", "model.safetensors", "README.md"):
            asked = await asking.file(path)
            before = metadata_requests(hub)
            for revision in ("main", commit(hub)):
                told = await node.file(path, revision=revision)
                assert (told.etag, told.size, told.commit) == (asked.etag, asked.size, asked.commit)
                assert told.is_public
            assert metadata_requests(hub) == before


async def test_others_than_the_hubs_own_client_are_told_all_that_the_hub_says(hub, tmp_path):
    """A tree does not contain content types, which clients other than huggingface_hub may need."""
    async with parts(hub.url, tmp_path) as node:
        await list_all(node, commit(hub))
        assert not (await node.file("config.json")).metadata.content_type
        route = FileRoute(TINY, commit(hub), "config.json")
        assert (await node.resolver.file(route, Client(None, "curl/8"))).metadata.content_type
        assert (await node.file("config.json")).metadata.content_type
        hub.turn(dark="close")
        assert (await node.resolver.file(route, Client(None, "curl/8"))).etag


async def test_where_a_small_known_file_is_costs_one_question(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        await list_all(node, commit(hub))
        file = await node.file("config.json")
        location = await node.resolver.locate(file, Client())
        assert location.url.startswith(f"{hub.url}/api/resolve-cache/")
        assert metadata_requests(hub) == 1
        again = await node.resolver.locate(file, Client(), location)  # the URL was refused: then the full request
        assert again.url == location.url
        assert metadata_requests(hub) == 3


@pytest.mark.parametrize("how", [{"gated": True}, {"private": True}])
async def test_a_listing_opens_no_gate(hub, tmp_path, how):
    guard(hub, **how)
    async with parts(hub.url, tmp_path) as node:
        await list_all(node, commit(hub), ALICE)
        for token in (BOB, None):
            with pytest.raises(HubError) as caught:
                await node.file("config.json", token)
            assert caught.value.is_refusal
        assert not (await node.file("config.json", ALICE)).is_public


async def test_an_open_commit_says_nothing_of_the_next_one(hub, tmp_path):
    """The gate came in between: the older commit's info was given before it, the newer one's listing after."""
    async with parts(hub.url, tmp_path, named=0) as node:
        await list_all(node, commit(hub))
        guard(hub, gated=True)
        newer = hub.folder.commit(TINY.id, {"config.json": b"{}"})
        await list_files(node, newer)  # which does not mention the gate
        with pytest.raises(HubError) as caught:
            await node.file("config.json", revision=newer)
        assert caught.value.code == "GatedRepo"


@pytest.mark.parametrize("is_written", [False, True])
async def test_what_the_hub_refuses_since_is_not_told(hub, tmp_path, is_written):
    async with parts(hub.url, tmp_path) as node:
        await list_all(node, commit(hub))
        guard(hub, private=True)
        if is_written:
            node.catalog.changed(str(TINY))
        else:
            with pytest.raises(HubError):
                await node.file("unlisted.json")
        with pytest.raises(HubError) as caught:
            await node.file("config.json")
        assert caught.value.is_refusal


def test_it_does_not_grow_without_bound():
    listings, file = Listings(limit=10), FileMetadata("a" * 40, 1)
    for number in range(100):
        listings.open("models/a/b", f"{number:040}", 1.0)
        listings.add("models/a/b", f"{number:040}", [(f"{n}.txt", file) for n in range(4)])
    assert listings.find("models/a/b", f"{99:040}", "3.txt") == (file, 1.0)
    assert listings.find("models/a/b", f"{97:040}", "3.txt") is None
    listings.add("models/a/b", f"{99:040}", [(f"{n}.txt", file) for n in range(100)])  # more than there is room for
    assert listings.find("models/a/b", f"{99:040}", "3.txt") is None

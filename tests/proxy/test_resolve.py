"""Which file a name means, who may have it, and the answers while the Hub is away."""

import asyncio
import hashlib
import time
from pathlib import Path

import msgspec
import pytest

from mesh.content import Digest
from proxy import hints
from proxy.files import HubAccess
from proxy.hints import Hint
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.urls import Repo
from proxy.resolve import Client
from tests.hub.process import HubProcess
from tests.proxy.parts import TINY, parts

SMALL = b'{"a": 1}\n'
LARGE = b"weights" * 1000
ALICE, BOB = "hf_alice", "hf_bob"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with HubProcess(tmp_path_factory.mktemp("hub")) as hub:
        hub.folder.add_token(ALICE, "alice")
        hub.folder.add_token(BOB, "bob")
        yield hub


@pytest.fixture
def hub(running, request):
    """A well-behaved Hub with a new public repository `acme/tiny`."""
    running.turn(dark="", latency={}, fail={}, url_life=3600.0)
    running.reset()
    running.folder.create(TINY.id)
    running.folder.commit(TINY.id, {"config.json": SMALL, "model.safetensors": LARGE, "README.md": b"# card\n"})
    return running


def guard(hub, **settings: object) -> None:
    """Make acme/tiny private or gated from now on, with alice as its reader."""
    repo = hub.folder.load(*("models", TINY.id))
    for name, value in settings.items():
        setattr(repo, name, value)
    repo.readers = ["alice"]
    repo.save(hub.folder.folder("models", TINY.id))


def asked(hub: HubProcess) -> int:
    return sum(hub.stats()["requests"].values())


async def refusal(question) -> tuple[int, str]:
    with pytest.raises(HubError) as caught:
        await question
    return caught.value.status, caught.value.code


async def test_large_and_small_files_carry_what_the_hub_says(hub, tmp_path):
    commit = hub.folder.load("models", TINY.id).refs["heads/main"]
    async with parts(hub.url, tmp_path) as node:
        large, small = await node.file("model.safetensors"), await node.file("config.json")
        assert large.digest == Digest("sha256", hashlib.sha256(LARGE).hexdigest())
        assert small.digest == Digest("git-sha1", hashlib.sha1(b"blob %d\0" % len(SMALL) + SMALL).hexdigest())
        assert (large.size, small.size) == (len(LARGE), len(SMALL))
        assert {large.commit, small.commit} == {commit}
        assert large.is_public
        assert (large.outcome, (await node.file("model.safetensors")).outcome) == ("miss", "hit")
        assert (await node.file("config.json", revision=commit)).outcome == "hit"


async def test_an_empty_file_needs_no_length(hub, tmp_path):
    """The stand-in answers a HEAD for an empty file as its library does: without Content-Length."""
    hub.folder.commit(TINY.id, {"__init__.py": b""})
    async with parts(hub.url, tmp_path) as node:
        assert (await node.file("__init__.py")).metadata.is_empty


async def test_many_who_ask_the_same_cost_one_question(hub, tmp_path):
    hub.turn(latency={"resolve": 0.2})
    async with parts(hub.url, tmp_path) as node:
        files = await asyncio.gather(*(node.file("model.safetensors", token) for token in [None, ALICE, BOB] * 10))
        assert len({file.etag for file in files}) == 1
        assert asked(hub) == 1


async def test_who_leaves_does_not_end_the_question_of_the_others(hub, tmp_path):
    hub.turn(latency={"resolve": 0.3})
    async with parts(hub.url, tmp_path) as node:
        first = asyncio.get_running_loop().create_task(node.file("model.safetensors"))
        await asyncio.sleep(0)
        second = asyncio.get_running_loop().create_task(node.file("model.safetensors"))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).size == len(LARGE)
        assert asked(hub) == 1


async def test_a_missing_file_is_remembered_for_its_commit_alone(hub, tmp_path):
    async with parts(hub.url, tmp_path, named=0) as node:
        commit = (await node.file("config.json")).commit
        for _ in range(2):
            assert await refusal(node.file("nope.json", revision=commit)) == (404, "EntryNotFound")
        assert hub.stats()["requests"][f"HEAD resolve /acme/tiny/resolve/{commit}/nope.json"] == 1
        hub.folder.commit(TINY.id, {"nope.json": b"{}"})
        assert (await node.file("nope.json")).size == 2
        assert await refusal(node.file("x", revision="no-such-branch")) == (404, "RevisionNotFound")


async def test_what_the_hub_says_is_missing_is_asked_of_nobody_else(hub, tmp_path):
    guard(hub, private=True)
    async with parts(hub.url, tmp_path) as node:
        node.resolver.hearsay = object()  # any use of it would fail
        assert await refusal(node.file("nope.json", ALICE)) == (404, "EntryNotFound")


async def test_a_branch_means_one_commit_until_its_time_is_up(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        old = (await node.file("config.json")).commit
        new = hub.folder.commit(TINY.id, {"config.json": b"{}"})
        assert (await node.file("model.safetensors")).commit == old
        assert (await node.file("config.json", revision=new)).commit == new
        node.catalog.changed(str(TINY))
        assert (await node.file("config.json")).commit == new


async def test_a_branch_rewritten_under_us_is_asked_for_by_name(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        old = (await node.file("config.json")).commit
        repo = hub.folder.load("models", TINY.id)
        hub.folder.commit(TINY.id, {"other.json": b"{}"})
        repo = hub.folder.load("models", TINY.id)
        del repo.commits[old]
        repo.save(hub.folder.folder("models", TINY.id))
        assert (await node.file("other.json")).commit == repo.refs["heads/main"]


async def test_a_renamed_repository_is_followed(hub, tmp_path):
    hub.folder.create("acme/old-name", moved_to=TINY.id)
    async with parts(hub.url, tmp_path) as node:
        repo = Repo("models", "acme/old-name")
        assert (await node.file("config.json", repo=repo)).size == len(SMALL)
        assert (await node.file("model.safetensors", repo=repo)).size == len(LARGE)


# --- who may read


@pytest.mark.parametrize("how", [{"private": True}, {"gated": True}])
async def test_what_one_token_may_read_is_not_anothers(hub, tmp_path, how):
    guard(hub, **how)
    async with parts(hub.url, tmp_path) as node:
        file = await node.file("model.safetensors", ALICE)
        assert not file.is_public
        assert (await node.file("model.safetensors", ALICE)).outcome == "hit"
        nobody, bob = await refusal(node.file("model.safetensors")), await refusal(node.file("model.safetensors", BOB))
        assert nobody == ((401, "RepoNotFound") if "private" in how else (401, "GatedRepo"))
        assert bob == ((404, "RepoNotFound") if "private" in how else (403, "GatedRepo"))
        assert (await refusal(node.file("nope", BOB)))[1] != "EntryNotFound"
        assert (await node.file("config.json", ALICE)).size == len(SMALL)


@pytest.mark.parametrize("how", [{"private": True}, {"gated": True}])
async def test_without_the_hub_only_a_fresh_verdict_lets_in(hub, tmp_path, how):
    guard(hub, **how)
    async with parts(hub.url, tmp_path, named=0) as node:
        await node.file("model.safetensors", ALICE)
        await refusal(node.file("model.safetensors", BOB))
        hub.turn(dark="close")
        assert (await node.file("model.safetensors", ALICE)).outcome == "stale"
        for token in (BOB, None):
            with pytest.raises(OriginUnavailable):  # and never a 401 or 404 that the Hub did not give
                await node.file("model.safetensors", token)
    async with parts(hub.url, tmp_path, grant_life=0) as node:
        with pytest.raises(OriginUnavailable):
            await node.file("model.safetensors", ALICE)


async def test_a_token_that_lost_its_access_is_refused_when_its_grant_ends(hub, tmp_path):
    guard(hub, private=True)
    async with parts(hub.url, tmp_path, grant_life=0) as node:
        await node.file("model.safetensors", ALICE)
        repo = hub.folder.load("models", TINY.id)
        repo.readers = []
        repo.save(hub.folder.folder("models", TINY.id))
        assert await refusal(node.file("model.safetensors", ALICE)) == (404, "RepoNotFound")


async def test_a_file_given_while_the_clock_was_ahead_is_closed_with_its_repository(hub, tmp_path, monkeypatch):
    ahead, true = [365 * 86400.0], time.time
    monkeypatch.setattr(time, "time", lambda: true() + ahead[0])
    async with parts(hub.url, tmp_path) as node:
        commit = (await node.file("model.safetensors")).commit
        ahead[0] = 0.0
        assert (await node.file("model.safetensors")).commit == commit
        new = hub.folder.commit(TINY.id, {"config.json": b"{}"})
        node.catalog.doubt(str(TINY))
        assert (await node.file("config.json")).commit == new, "the later meaning of the branch is kept"
        ahead[0] = 365 * 86400.0
        await node.file("README.md", revision=commit)
        ahead[0] = 0.0
        guard(hub, private=True)
        assert (await refusal(node.file("new.json")))[0] == 401
        for path in ("model.safetensors", "README.md"):
            for ahead[0] in (0.0, 365 * 86400.0 + 60):
                assert (await refusal(node.file(path, revision=commit)))[0] == 401


async def test_a_refusal_ends_a_grant_at_once(hub, tmp_path):
    guard(hub, gated=True)
    async with parts(hub.url, tmp_path) as node:
        await node.file("model.safetensors", ALICE)
        repo = hub.folder.load("models", TINY.id)
        repo.readers = []
        repo.save(hub.folder.folder("models", TINY.id))
        for path in ("config.json", "model.safetensors"):
            assert await refusal(node.file(path, ALICE)) == (403, "GatedRepo")


async def test_an_older_yes_that_comes_after_a_refusal_lets_nobody_in(hub, tmp_path):
    hub.folder.commit(TINY.id, {"late.json": SMALL})
    guard(hub, private=True)
    async with parts(hub.url, tmp_path) as node:
        commit = (await node.file("model.safetensors", ALICE)).commit
        origin, held = node.origin, asyncio.Event()
        ask = origin.ask

        async def slowly(method, target, **about):
            answer = await ask(method, target, **about)
            if "late" in target and answer.status == 200:
                await held.wait()
            return answer

        origin.ask = slowly
        late = asyncio.get_running_loop().create_task(node.file("late.json", ALICE, revision=commit))
        while not any("resolve-cache" in name for name in hub.stats()["requests"]):
            await asyncio.sleep(0.02)
        repo = hub.folder.load("models", TINY.id)
        repo.readers = []
        repo.save(hub.folder.folder("models", TINY.id))
        assert await refusal(node.file("config.json", ALICE, revision=commit)) == (404, "RepoNotFound")
        held.set()
        assert (await late).size
        assert await refusal(node.file("model.safetensors", ALICE, revision=commit)) == (404, "RepoNotFound")


async def test_a_card_opens_no_gate(hub, tmp_path):
    """Even where everybody may read the card of a gated repository, that proves nothing for its weights."""
    async with parts(hub.url, tmp_path) as node:
        guard(hub, gated=True)
        await node.file("model.safetensors", ALICE)
        guard(hub, gated=False)  # as if the card alone were open
        assert (await node.file("README.md", BOB)).size
        assert (await node.file("README.md")).is_public
        guard(hub, gated=True)
        assert await refusal(node.file("model.safetensors", BOB)) == (403, "GatedRepo")
        assert await refusal(node.file("model.safetensors")) == (401, "GatedRepo")


async def test_a_missing_file_opens_no_gate(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        guard(hub, gated=True)
        commit = (await node.file("model.safetensors", ALICE)).commit
        guard(hub, gated=False)  # as if the Hub looked for the file before it checked the gate
        assert await refusal(node.file("nope", BOB, revision=commit)) == (404, "EntryNotFound")
        guard(hub, gated=True)
        assert await refusal(node.file("model.safetensors", BOB)) == (403, "GatedRepo")


async def test_a_public_file_closes_when_the_hub_says_so_of_any(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        await node.file("model.safetensors")
        guard(hub, gated=True)
        await refusal(node.file("config.json"))
        assert await refusal(node.file("model.safetensors")) == (401, "GatedRepo")
        hub.turn(dark="close")
        with pytest.raises(OriginUnavailable):
            await node.file("model.safetensors")


async def test_a_write_through_us_voids_what_was_open(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        await node.file("model.safetensors")
        guard(hub, private=True)
        node.catalog.changed(str(TINY))
        assert (await refusal(node.file("model.safetensors")))[0] == 401


async def test_a_bad_token_reads_what_is_public_and_nothing_else(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        assert (await node.file("model.safetensors", "hf_garbage")).is_public
        guard(hub, private=True)
        node.catalog.changed(str(TINY))
        assert await refusal(node.file("model.safetensors", "hf_garbage")) == (401, "")


# --- the Hub away


@pytest.mark.parametrize("trouble", [{"dark": "close"}, {"fail": {"resolve": [500, 502, 503, 429] * 5}}])
async def test_what_is_known_is_told_when_the_hub_fails(hub, tmp_path, trouble):
    async with parts(hub.url, tmp_path, named=0) as node:
        commit = (await node.file("model.safetensors")).commit
        hub.turn(**trouble)
        stale = await node.file("model.safetensors")
        assert (stale.outcome, stale.commit) == ("stale", commit)
        assert (await node.file("model.safetensors", revision=commit)).outcome == "hit"
        with pytest.raises(OriginUnavailable):
            await node.file("config.json")


async def test_a_tag_that_was_deleted_is_not_told_when_the_hub_fails(hub, tmp_path):
    commit = hub.folder.commit(TINY.id, {"config.json": b"{}"}, ref="tags/v1")
    async with parts(hub.url, tmp_path, named=0) as node:
        assert (await node.file("config.json", revision="v1")).commit == commit
        repo = hub.folder.load("models", TINY.id)
        del repo.refs["tags/v1"]
        repo.save(hub.folder.folder("models", TINY.id))
        assert await refusal(node.file("config.json", revision="v1")) == (404, "RevisionNotFound")
        hub.turn(dark="close")
        with pytest.raises(OriginUnavailable):
            await node.file("config.json", revision="v1")
        assert (await node.file("config.json", revision=commit)).outcome == "hit"
        hub.turn(dark="")
        again = hub.folder.commit(TINY.id, {"config.json": b"[]"}, ref="tags/v1")
        assert (await node.file("config.json", revision="v1")).commit == again


async def test_only_one_waits_for_a_hub_that_does_not_answer(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.failing._TRY_SECONDS", 100.0)
    async with parts(hub.url, tmp_path, named=0, answer_timeout=0.5) as node:
        await node.file("model.safetensors")
        hub.turn(dark="hang")
        assert (await node.file("model.safetensors")).outcome == "stale"
        before = asked(hub)
        assert (await node.file("model.safetensors", ALICE)).outcome == "stale"
        assert asked(hub) == before
        hub.turn(dark="")


async def test_a_hub_that_is_back_is_noticed_although_every_client_gets_an_older_answer(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.failing._TRY_SECONDS", 0.0)
    monkeypatch.setattr("proxy.failing._FAILING_SECONDS", 1000.0)
    async with parts(hub.url, tmp_path, named=0) as node:
        for ask in (lambda: node.file("config.json"), lambda: node.ask("/api/models/acme/tiny")):
            await ask()
            hub.turn(dark="close")
            await ask()
            assert node.origin.is_failing
            for dark in ("close", ""):
                hub.turn(dark=dark)
                before = len(node.figures.requests)
                answer = await ask()
                assert getattr(answer, "outcome", None) == "stale" or answer[2] == "stale", (
                    "it does not wait for the Hub"
                )
                limit = time.monotonic() + 30
                while len(node.origin._tries) and time.monotonic() < limit:
                    await asyncio.sleep(0.01)
                assert len(node.figures.requests) > before
                assert node.origin.is_failing == bool(dark)


async def test_an_answer_that_comes_too_late_serves_the_next_one(hub, tmp_path):
    hub.turn(latency={"resolve": 0.6})
    async with parts(hub.url, tmp_path, patience=0.1) as node:
        with pytest.raises(OriginUnavailable) as caught:
            await node.file("model.safetensors")
        assert caught.value.is_timeout
        limit = time.monotonic() + 10
        while len(node.origin.flights) and time.monotonic() < limit:
            await asyncio.sleep(0.02)
        assert (await node.file("model.safetensors")).outcome == "hit"
        assert asked(hub) == 1


async def test_patience_is_for_all_that_is_asked(hub, tmp_path):
    """The file is asked for at the branch's old commit, then by the branch's name; each alone would be in time."""
    async with parts(hub.url, tmp_path, patience=2.0) as node:
        old = (await node.file("config.json")).commit
        hub.folder.commit(TINY.id, {"other.json": b"{}"})
        repo = hub.folder.load("models", TINY.id)
        del repo.commits[old]
        repo.save(hub.folder.folder("models", TINY.id))
        hub.turn(latency={"resolve": 1.2})
        with pytest.raises(OriginUnavailable) as caught:
            await node.file("model.safetensors")
        assert caught.value.is_timeout


async def test_offline_tells_what_is_here_and_asks_nobody(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        await node.file("model.safetensors")
    hub.reset()
    async with parts(hub.url, tmp_path, named=0, offline=True) as node:
        assert (await node.file("model.safetensors")).outcome == "stale"
        with pytest.raises(OriginUnavailable):
            await node.file("config.json")
        assert asked(hub) == 0


async def test_nobodys_empty_quota_is_not_the_clients(hub, tmp_path):
    hub.turn(fail={"resolve": [429]}, retry_after=60)
    async with parts(hub.url, tmp_path) as node:
        assert (await node.file("model.safetensors", ALICE)).size == len(LARGE)
        with pytest.raises(OriginUnavailable) as caught:
            await node.file("config.json")
        assert caught.value.retry_after is not None
        assert node.figures.requests == [("metadata", 429), ("metadata", 302)]  # the pause holds without asking


# --- where the bytes are


async def test_one_signed_address_serves_until_it_ends_or_is_refused(hub, tmp_path: Path):
    async with parts(hub.url, tmp_path) as node:
        client, file = Client(ALICE), await node.file("model.safetensors", ALICE)
        first = await node.resolver.locate(file, client)
        assert first.url.startswith(hub.cdn_url)
        assert not first.headers
        assert await node.resolver.locate(file, client) == first
        assert asked(hub) == 1
        assert abs(first.expires_at - time.time() - 3600) < 60
        second, third = await asyncio.gather(*(node.resolver.locate(file, client, first) for _ in range(2)))
        assert second == third != first
        assert asked(hub) == 2
        assert await node.resolver.locate(file, client, first) == second


async def test_a_clock_that_is_ahead_makes_no_address_bad(hub, tmp_path):
    hub.turn(url_life=-3600.0)  # as a node whose clock is two hours ahead sees a URL valid for one hour
    async with parts(hub.url, tmp_path) as node:
        file = await node.file("model.safetensors")
        location = await node.resolver.locate(file, Client())
        assert await node.resolver.locate(file, Client()) == location
        assert 0 < location.expires_at - time.time() < 3600
        assert asked(hub) == 1


async def test_an_address_for_a_token_holder_is_for_nobody_else(hub, tmp_path):
    guard(hub, private=True)
    async with parts(hub.url, tmp_path) as node:
        large, small = await node.file("model.safetensors", ALICE), await node.file("config.json", ALICE)
        await node.resolver.locate(large, Client(ALICE))
        assert (await node.resolver.locate(small, Client(ALICE))).headers["Authorization"] == f"Bearer {ALICE}"
        with pytest.raises(HubError):
            await node.resolver.locate(large, Client(BOB))
        assert node.resolver.hint(large) == b""


async def test_a_hint_names_a_public_file_and_nothing_strange(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        file = await node.file("model.safetensors", ALICE)
        hint = node.resolver.hint(file)
        assert hints.decode(hint) == file.at_commit
        access = await HubAccess.of_hint(hint, node.resolver, file.digest, file.size)
        assert (await access.locate(None)).url.startswith(hub.cdn_url)
        for digest, size in ((Digest("sha256", "a" * 64), file.size), (file.digest, file.size + 1)):
            assert await HubAccess.of_hint(hint, node.resolver, digest, size) is None, "it is another blob"
        guard(hub, gated=True)
        async with parts(hub.url, tmp_path / "other") as other:
            closed = await HubAccess.of_hint(hint, other.resolver, file.digest, file.size)
            assert closed is None, "nobody's word opens a gated file"
        for bad in (b"", b"\xff" * 9, b"\x93\xa1a\xa1b\xa1c", b"\x93\xa3a/b\xa4main\xa1c"):
            assert hints.decode(bad) is None
        # A mirror may resolve these, and then answers for another repository than the one named.
        for path in (
            "",
            "a/",
            ".",
            "../x",
            f"../../../../acme/open/resolve/{file.commit}/x",
            "a/../../x",
            "a\nb",
            "\0",
        ):
            hint = msgspec.msgpack.encode(Hint(str(TINY), file.commit, path))
            assert hints.decode(hint) is None, path
        assert hints.decode(msgspec.msgpack.encode(Hint(str(TINY), file.commit, "ü/a%2e..b"))) is not None

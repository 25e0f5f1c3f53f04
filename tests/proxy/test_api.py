"""Answers about repositories: asked once, consistent with files, only for those who may see them, with the Hub away."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Awaitable
from hashlib import sha256

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from proxy import large
from proxy.hub.client import Client
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.urls import parse
from tests.hub.process import HubProcess
from tests.proxy.parts import TINY, Parts, parts

ALICE, BOB = "hf_alice", "hf_bob"
INFO = "/api/models/acme/tiny"
TREE = f"{INFO}/tree/main?recursive=true&expand=false"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with HubProcess(tmp_path_factory.mktemp("hub")) as hub:
        hub.folder.add_token(ALICE, "alice")
        hub.folder.add_token(BOB, "bob")
        yield hub


@pytest.fixture
def hub(running):
    running.turn(dark="", latency={}, fail={}, page_size=1000)
    running.reset()
    running.folder.create(TINY.id)
    running.folder.commit(TINY.id, {"config.json": b"{}", "data/en/a.bin": b"large" * 10, "README.md": b"# card\n"})
    return running


def guard(hub, **settings: object) -> None:
    repo = hub.folder.load("models", TINY.id)
    repo.readers = ["alice"]
    for name, value in settings.items():
        setattr(repo, name, value)
    repo.save(hub.folder.folder("models", TINY.id))


def rewrite(hub: HubProcess, commit: str) -> None:
    """Rewrite history as a force push does: the commit that `main` was is gone, and `main` is another one."""
    repo = hub.folder.load("models", TINY.id)
    repo.commits, repo.refs = {commit: repo.commits[repo.refs["heads/main"]]}, {"heads/main": commit}
    repo.save(hub.folder.folder("models", TINY.id))


def asked(hub: HubProcess) -> int:
    return sum(hub.stats()["requests"].values())


async def sha(node: Parts, target: str = INFO, token: str | None = None) -> str:
    return json.loads((await node.ask(target, token))[1])["sha"]


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (INFO, b""),
        (f"{INFO}?blobs=true", b""),
        (f"{INFO}/revision/main", b""),
        (f"{INFO}/refs?include_prs=1", b""),
        (TREE, b""),
        (f"{INFO}/tree/main/data%2Fen", b""),
        (f"{INFO}/paths-info/main", b"paths=config.json&paths=data&expand=False"),
    ],
)
async def test_the_same_question_is_asked_once(hub, tmp_path, target, body):
    async with parts(hub.url, tmp_path) as node:
        first = await node.ask(target, None, body)
        cost = asked(hub)
        assert first[0] == 200
        assert first[2] == "miss"
        assert await node.ask(target, ALICE, body) == (200, first[1], "hit")  # public: for every token
        spelled = target.replace("true&expand=false", "True&expand=False")
        assert await node.ask(spelled, None, body.replace(b"False", b"false")) == (200, first[1], "hit")
        assert asked(hub) == cost
    async with parts(hub.url, tmp_path) as node:  # and after a restart
        assert (await node.ask(target, None, body))[2] == "hit"


async def test_other_paths_are_another_question(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        many = b"&".join(b"paths=%d" % number + b"x" * 1500 for number in range(800))
        for tail, found in ((b"&paths=config.json", 1), (b"&paths=README.md&paths=config.json", 2)):
            status, body, _ = await node.ask(f"{INFO}/paths-info/main", None, many + tail)
            assert (status, len(json.loads(body))) == (200, found)


async def test_a_path_may_be_called_as_a_flag_is_written(hub, tmp_path):
    hub.folder.commit(TINY.id, {"True": b"1", "true": b"22"})
    async with parts(hub.url, tmp_path) as node:
        for path in ("True", "true"):
            [entry] = json.loads((await node.ask(f"{INFO}/paths-info/main", None, f"paths={path}".encode()))[1])
            assert entry["path"] == path


async def test_a_commit_is_never_asked_twice_and_a_branch_when_its_time_is_up(hub, tmp_path):
    async with parts(hub.url, tmp_path, named=0) as node:
        commit = await sha(node)
        await node.ask(f"{INFO}/tree/{commit}")
        hub.reset()
        assert (await node.ask(f"{INFO}/tree/{commit}"))[2] == "hit"
        assert (await node.ask(f"{INFO}/revision/{commit}"))[2] == "hit"  # known from the branch
        assert asked(hub) == 0
        assert (await node.ask(INFO))[2] == "miss"


async def test_info_tree_and_files_speak_of_one_commit(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        old = await sha(node, f"{INFO}/revision/main")
        new = hub.folder.commit(TINY.id, {"new.json": b"{}"})
        assert (await node.file("config.json")).commit == old
        assert await sha(node) == old
        assert await sha(node, f"{INFO}?blobs=true") == old  # not known yet, and asked for that commit
        await node.api.ask(parse(f"{INFO}?blobs=true"), Client(), is_reload=True)  # and everything else follows
        assert (await node.file("config.json")).commit == new
        assert await sha(node) == await sha(node, f"{INFO}/revision/main") == new
        assert "new.json" in (await node.ask(TREE))[1].decode()


@pytest.mark.parametrize(("target", "body"), [(TREE, b""), (f"{INFO}/paths-info/main", b"paths=config.json")])
async def test_a_branch_whose_history_was_rewritten_is_asked_for_again(hub, tmp_path, target, body):
    async with parts(hub.url, tmp_path) as node:
        old = await sha(node)
        rewrite(hub, "ab" * 20)
        status, listed, outcome = await node.ask(target, None, body)
        assert (status, outcome) == (200, "miss")
        assert "config.json" in listed.decode()
        assert await sha(node) == "ab" * 20
        for question in (node.ask(f"{INFO}/tree/{old}"), node.ask(target.replace("main", "nope"), None, body)):
            with pytest.raises(HubError) as caught:
                await question
            assert caught.value.code == "RevisionNotFound"


async def test_what_is_missing_is_told_as_the_hub_does(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        commit = await sha(node)
        for _ in range(2):
            status, _, outcome = await node.ask(f"{INFO}/tree/main/nowhere")
            assert status == 404
        assert outcome == "hit"
        answer = node.catalog.answer(str(TINY), "*", f"{INFO}/tree/{commit}/nowhere\n")
        assert answer is not None
        assert answer.headers["X-Error-Code"] == "EntryNotFound"
        for target, code in [
            (f"{INFO}/revision/nope", "RevisionNotFound"),
            (f"{INFO}/tree/nope", "RevisionNotFound"),
            ("/api/models/acme/never", "RepoNotFound"),
        ]:
            with pytest.raises(HubError) as caught:
                await node.ask(target)
            assert caught.value.code == code


async def test_a_renamed_repository_is_followed(hub, tmp_path):
    hub.folder.create("acme/old-name", moved_to=TINY.id)
    async with parts(hub.url, tmp_path) as node:
        assert await sha(node, "/api/models/acme/old-name") == await sha(node)
        assert (await node.ask("/api/models/acme/old-name/tree/main"))[0] == 200


async def test_a_private_answer_is_for_its_token_alone(hub, tmp_path):
    guard(hub, private=True)
    async with parts(hub.url, tmp_path) as node:
        assert (await node.ask(TREE, ALICE))[2] == "miss"
        assert (await node.ask(TREE, ALICE))[2] == "hit"
        for token, status in ((None, 401), (BOB, 404)):
            with pytest.raises(HubError) as caught:
                await node.ask(TREE, token)
            assert caught.value.status == status
        hub.turn(dark="close")
        with pytest.raises(OriginUnavailable):
            await node.ask(TREE, BOB)


async def test_a_refusal_voids_what_was_kept_for_a_token(hub, tmp_path):
    guard(hub, private=True)
    async with parts(hub.url, tmp_path) as node:
        await node.ask(INFO, ALICE)
        repo = hub.folder.load("models", TINY.id)
        repo.readers = []
        repo.save(hub.folder.folder("models", TINY.id))
        with pytest.raises(HubError):
            await node.ask(f"{INFO}/refs", ALICE)
        with pytest.raises(HubError):
            await node.ask(INFO, ALICE)


async def test_the_info_of_a_gated_repository_is_public_and_opens_no_file(hub, tmp_path):
    guard(hub, gated=True)
    async with parts(hub.url, tmp_path) as node:
        await node.file("config.json", ALICE)
        assert (await node.ask(INFO, BOB))[0] == 200
        assert (await node.ask(TREE))[0] == 200
        with pytest.raises(HubError) as caught:
            await node.file("config.json", BOB)
        assert caught.value.code == "GatedRepo"


@pytest.mark.parametrize("token", [None, ALICE])
@pytest.mark.parametrize("tail", ["", "/revision/main"])
async def test_who_hears_of_a_gate_closes_it(hub, tmp_path, token, tail):
    async with parts(hub.url, tmp_path, named=0) as node:
        guard(hub, gated=True)
        await node.ask(INFO + tail, token)
        guard(hub, gated=False)
        commit = (await node.file("config.json")).commit
        guard(hub, gated=True)
        await node.ask(INFO + tail, token)  # the same as at first: the Hub answers only 304
        for who in (None, BOB):
            with pytest.raises(HubError) as caught:
                await node.file("config.json", who, revision=commit)
            assert caught.value.code == "GatedRepo"
        assert (await node.file("config.json", ALICE, revision=commit)).commit == commit


async def test_a_gated_card_stays_open_whatever_else_is_heard(hub, tmp_path):
    async with parts(hub.url, tmp_path, named=0) as node:
        guard(hub, gated=True)
        await node.ask(INFO)
        node.catalog.told(str(TINY), before := time.time(), is_open=False)
        await node.ask(INFO)
        assert 0 < node.catalog.publicness(str(TINY)).closed_at < before


async def test_what_was_public_is_not_told_any_more_once_it_is_hidden(hub, tmp_path):
    async with parts(hub.url, tmp_path, named=0) as node:
        await node.ask(INFO)
        guard(hub, private=True)
        with pytest.raises(HubError):
            await node.ask(INFO)
        hub.turn(dark="close")
        with pytest.raises(OriginUnavailable):
            await node.ask(INFO)


@pytest.mark.parametrize("trouble", [{"dark": "close"}, {"fail": {"api": [500, 429, 502] * 9}}])
async def test_what_is_known_is_told_when_the_hub_fails(hub, tmp_path, trouble):
    async with parts(hub.url, tmp_path, named=0) as node:
        commit = await sha(node)
        tree = (await node.ask(TREE))[1]
        hub.turn(**trouble)
        assert await node.ask(TREE) == (200, tree, "stale")
        assert (await node.ask(INFO))[2] == "stale"
        assert (await node.ask(f"{INFO}/revision/main"))[2] == "stale"  # requested under another name before
        assert (await node.ask(f"{INFO}/revision/{commit}"))[2] == "hit"
        with pytest.raises(OriginUnavailable):
            await node.ask(f"{INFO}/refs")


async def test_a_slow_answer_is_waited_for_unless_there_is_an_older_one(hub, tmp_path):
    async with parts(hub.url, tmp_path, named=0, answer_timeout=0.2) as node:
        hub.turn(latency={"api": 0.8})
        assert (await node.ask(INFO))[2] == "miss"
        assert (await node.ask(INFO))[2] == "stale"
        new = hub.folder.commit(TINY.id, {"b.txt": b"b"})
        limit = time.monotonic() + 30
        while await sha(node) != new:
            assert time.monotonic() < limit, "an answer that came too late serves the next client"


async def test_of_a_silent_hub_only_two_questions_are_waited_for(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.failing._TRY_SECONDS", 100.0)
    questions = (TREE, f"{INFO}/refs", INFO, f"{INFO}/revision/main")
    async with parts(hub.url, tmp_path, named=0, answer_timeout=0.3, silence=1000.0) as node:
        before = [(await node.ask(target))[1] for target in questions]
        hub.turn(dark="hang")
        for number, target in enumerate(questions):
            assert await node.ask(target) == (200, before[number], "stale")
            limit = time.monotonic() + 30
            while number and not node.origin.is_failing and time.monotonic() < limit:
                await asyncio.sleep(0.01)
            assert node.origin.is_failing == (number > 0)
        assert len(node.origin.flights) == 2, "nobody asks any more"
        hub.turn(dark="")


async def test_a_trees_commit_is_known_from_files_when_the_hub_is_slow(hub, tmp_path):
    async with parts(hub.url, tmp_path, named=0, answer_timeout=0.3, silence=1000.0) as node:
        commit = (await node.file("config.json")).commit
        tree = (await node.ask(f"{INFO}/tree/{commit}?recursive=true&expand=false"))[1]
        hub.turn(dark="hang")
        assert await node.ask(TREE) == (200, tree, "stale")
        hub.turn(dark="")


async def test_what_is_in_doubt_is_asked_again_and_told_when_the_hub_is_away(hub, tmp_path):
    async with parts(hub.url, tmp_path) as node:
        questions = (INFO, TREE, f"{INFO}/tree/{await sha(node)}", f"{INFO}/refs")
        for target in questions:
            await node.ask(target)
        node.catalog.doubt(str(TINY))
        for outcome in ("miss", "hit"):
            assert {(await node.ask(target))[2] for target in questions[1:]} == {outcome}
        node.catalog.doubt(str(TINY))
        hub.turn(dark="close")
        assert {(await node.ask(target))[2] for target in questions} == {"stale"}


async def test_files_alone_are_enough_to_know_a_trees_commit(hub, tmp_path):
    async with parts(hub.url, tmp_path, named=0) as node:
        commit = (await node.file("config.json")).commit
        tree = (await node.ask(f"{INFO}/tree/{commit}"))[1]
        hub.turn(dark="close")
        assert await node.ask(f"{INFO}/tree/main") == (200, tree, "stale")


async def test_an_answer_that_is_not_the_hubs_is_not_kept(tmp_path, aiohttp_raw_server):
    async def captive(_: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>Please log in to the network</html>", content_type="text/html")

    server = await aiohttp_raw_server(captive)
    async with parts(f"http://127.0.0.1:{server.port}", tmp_path) as node:
        for question in (node.ask(INFO), node.ask(TREE), node.file("config.json")):
            with pytest.raises(OriginUnavailable):
                await question
        assert node.catalog.answer(str(TINY), "*", f"{INFO}\n") is None


async def test_a_repository_without_commits_has_no_tree(hub, tmp_path):
    hub.folder.create("acme/empty")
    empty = "/api/models/acme/empty"
    async with parts(hub.url, tmp_path) as node:
        for question in (f"{empty}/tree/main", f"{empty}/tree/main/data", f"{empty}/paths-info/main"):
            with pytest.raises(HubError) as caught:
                await node.ask(question, body=b"paths=a" if "paths-info" in question else b"")
            assert (caught.value.status, caught.value.code) == (404, "RevisionNotFound")
        assert json.loads((await node.ask(empty))[1])["sha"] is None
        hub.folder.commit("acme/empty", {"a.txt": b"first"})
        assert b"a.txt" in (await node.ask(f"{empty}/tree/main"))[1]


async def test_what_only_looks_like_an_info_is_passed_on_as_it_is(tmp_path, aiohttp_raw_server):
    """An old id and a verb that is not known here look like an owner and a name."""

    async def fine(_: web.BaseRequest) -> web.Response:
        return web.Response(text="OK")

    server = await aiohttp_raw_server(fine)
    async with parts(f"http://127.0.0.1:{server.port}", tmp_path) as node:
        assert await node.ask("/api/models/gpt2/new-verb") == (200, b"OK", "miss")
        assert node.catalog.answer("models/gpt2/new-verb", "*", "/api/models/gpt2/new-verb\n") is None
        for question in (node.ask("/api/models/gpt2"), node.ask(f"{INFO}/revision/main"), node.ask(f"{INFO}/refs")):
            with pytest.raises(OriginUnavailable):
                await question


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_a_large_info_is_read_in_threads_and_answered_like_any_other(tmp_path, monkeypatch, aiohttp_raw_server):
    names = [f"data/{number:06}" for number in range(12_000)]
    siblings = [{"rfilename": name, "size": 5, "xetHash": sha256(name.encode()).hexdigest()} for name in names]
    info = {"id": TINY.id, "sha": "c" * 40, "private": False, "gated": False, "siblings": siblings}

    async def origin(_: web.BaseRequest) -> web.Response:
        return web.json_response(info)

    threads = set()

    def noted(body: bytes) -> bool:
        assert len(body) > large.LARGE
        threads.add(threading.current_thread())
        return b'"xetHash"' in body

    monkeypatch.setattr("proxy.hub.rewrite.mentions_xet", noted)
    server = await aiohttp_raw_server(origin)
    async with parts(f"http://127.0.0.1:{server.port}", tmp_path) as node:
        for outcome in ("miss", "hit"):
            status, body, was = await node.ask(INFO)
            assert (status, json.loads(body), was) == (200, info, outcome)
            response = await node.api.handle(make_mocked_request("GET", INFO), parse(INFO), Client(None, ""))
            assert b"xetHash" not in response._whole
        for sibling in (siblings[0], siblings[-1]):
            assert node.catalog.xet_name(str(TINY), sibling["xetHash"]).path == sibling["rfilename"]
        assert node.catalog.publicness(str(TINY)).is_open(time.time(), time.time(), may_ask=True)
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("seed", range(6))
async def test_no_private_answer_ever_reaches_another_token(hub, tmp_path, seed):
    """Random interleavings of tokens, routes, outages, gates and writes."""
    rng = random.Random(seed)
    readers = {ALICE}
    state: dict[str, object] = {"private": True, "gated": False}
    guard(hub, **state)
    async with parts(hub.url, tmp_path, named=rng.choice([0, 60])) as node:
        for _ in range(60):
            step = rng.random()
            if step < 0.1:
                hub.turn(dark=rng.choice(["", "", "close"]))
            elif step < 0.15:
                state = {"private": rng.random() < 0.5}
                state["gated"] = not state["private"]
                guard(hub, **state)
                node.catalog.changed(str(TINY))
            elif step < 0.2:
                hub.turn(fail={"resolve": [429], "api": [503]})
            token = rng.choice([ALICE, BOB, "hf_garbage", None])
            is_file = rng.random() < 0.6
            path = rng.choice(["config.json", "data/en/a.bin", "README.md", "nowhere"])
            target = rng.choice([INFO, TREE, f"{INFO}/refs", f"{INFO}/revision/main"])
            told = await outcome(node.file(path, token) if is_file else node.ask(target, token))
            is_reader = token in readers or (state["gated"] and not is_file)
            assert (told in ("answer", "EntryNotFound")) <= is_reader, (token, path, target, state, told)
            assert told in ("answer", "EntryNotFound", "unavailable") or not is_reader, (token, path, state, told)


async def outcome(question: Awaitable[object]) -> str:
    try:
        await question
    except HubError as error:
        return error.code or str(error.status)
    except OriginUnavailable:
        return "unavailable"
    return "answer"

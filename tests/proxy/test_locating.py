"""When the Hub is asked for the location of bytes long after their metadata, its own answer is passed on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http import ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

ALICE, BOB = "hf_alice", "hf_bob"
BODY = b'{"a": 1}'


@pytest.fixture
def node(hub: HubProcess, tmp_path: Path) -> Iterator[NodeProcess]:
    hub.folder.add_token(ALICE, "alice")
    hub.folder.add_token(BOB, "bob")
    with NodeProcess(tmp_path / "node", hub.url) as process:
        yield process


def change(hub: HubProcess, repo_id: str, **settings: object) -> None:
    repo = hub.folder.load("models", repo_id)
    for name, value in settings.items():
        setattr(repo, name, value)
    repo.save(hub.folder.folder("models", repo_id))


def test_who_is_refused_meanwhile_hears_it_as_from_the_hub(hub: HubProcess, node: NodeProcess) -> None:
    cases: list[tuple[str, dict[str, object], str]] = [
        ("acme/gated", {"gated": True, "readers": ["alice"]}, ""),
        ("acme/hidden", {"private": True, "readers": ["alice"]}, BOB),
        ("acme/disabled", {"disabled": True}, ""),
        ("acme/private", {"readers": []}, ALICE),
    ]
    for repo, settings, token in cases:
        hub.folder.create(repo, private=repo == "acme/private", readers=["alice"])
        hub.folder.commit(repo, {"config.json": BODY})
        at = f"/{repo}/resolve/main/config.json"
        assert ask(node.url + at, "HEAD", token=token).status == 200
        change(hub, repo, **settings)
        told, heard = ask(hub.url + at, token=token), ask(node.url + at, token=token)
        assert heard.status == told.status, (repo, heard)
        assert heard["X-Error-Message"].partition(":")[0] == told["X-Error-Message"].partition(":")[0]
        if told["X-Error-Code"]:
            assert heard["X-Error-Code"] == told["X-Error-Code"]


def test_a_branch_that_was_rewritten_meanwhile_is_there(hub: HubProcess, node: NodeProcess) -> None:
    old = hub.folder.commit("acme/tiny", {"config.json": BODY})
    at = f"{node.url}/acme/tiny/resolve"
    assert ask(f"{at}/main/config.json", "HEAD").status == 200
    new = hub.folder.commit("acme/tiny", {"config.json": b"{}"})
    commits = hub.folder.load("models", "acme/tiny").commits
    change(hub, "acme/tiny", commits={new: commits[new]})
    assert ask(f"{at}/main/config.json", User_Agent="hf_hub/2.4.0").status == 429
    assert ask(f"{at}/main/config.json").body == b"{}"
    heard = ask(f"{at}/{old}/config.json")
    assert (heard.status, heard["X-Error-Code"]) == (404, "RevisionNotFound")


def test_who_may_have_it_still_gets_it_with_its_own_token(hub: HubProcess, node: NodeProcess) -> None:
    hub.folder.commit("acme/tiny", {"config.json": BODY})
    at = f"{node.url}/acme/tiny/resolve/main/config.json"
    assert ask(at, "HEAD").status == 200
    change(hub, "acme/tiny", private=True, readers=["alice"])
    assert ask(at, token=ALICE).body == BODY
    assert ask(at).status == 401
    assert ask(at, token=BOB).status == 404

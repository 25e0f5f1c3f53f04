"""A repository under several names: what is heard of it under one name counts for the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest

from proxy.catalog import Catalog
from proxy.hub.aliases import Aliases
from tests.http import Answer, ask
from tests.hub.process import HubProcess
from tests.node import NodeProcess

ALICE = "hf_alice"


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[HubProcess]:
    with HubProcess(tmp_path_factory.mktemp("hub")) as hub:
        hub.folder.add_token(ALICE, "alice")
        yield hub


@pytest.fixture(scope="module")
def node(running, tmp_path_factory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), running.url) as node:
        yield node


@pytest.fixture
def hub(running) -> HubProcess:
    running.reset()
    return running


@pytest.fixture
def own(hub, request) -> str:
    """A new public repository of alice, whose name has lower-case letters only."""
    own = f"alice/{abs(hash(request.node.nodeid)):x}"
    hub.folder.create(own, readers=["alice"])
    hub.folder.commit(own, {"a.txt": b"one", "w.bin": b"weights"})
    return own


def lead(hub: HubProcess, *names: str) -> None:
    """Make each name lead to the next one."""
    for name, following in pairwise(names):
        hub.folder.create(name, moved_to=following)


def head(hub: HubProcess, own: str) -> str:
    return hub.folder.load("models", own).refs["heads/main"]


def read(node: NodeProcess, name: str, path: str = "a.txt", revision: str = "main") -> Answer:
    return ask(f"{node.url}/{name}/resolve/{revision}/{path}")


def set_private(node: NodeProcess, name: str, *, is_private: bool) -> None:
    order = json.dumps({"visibility": "private" if is_private else "public"}).encode()
    assert ask(f"{node.url}/api/models/{name}/settings", "PUT", token=ALICE, body=order).status == 200


@pytest.mark.parametrize("path", ["a.txt", "w.bin"])
@pytest.mark.parametrize(
    "kind",
    [
        "renamed",
        "twice renamed",
        "upper case",
        "without owner",  # answered without a redirect to the other name, as the Hub does for files
    ],
)
def test_a_repository_made_private_is_closed_under_every_name(hub, node, own, kind, path):
    names = {
        "renamed": [f"{own}-old"],
        "twice renamed": [f"{own}-oldest", f"{own}-old"],
        "upper case": [own.upper()],
        "without owner": [own.replace("/", "-")],
    }[kind]
    lead(hub, *names, own)
    commit = head(hub, own)
    assert [read(node, names[0], path, revision).status for revision in ("main", commit)] == [200, 200]
    set_private(node, own, is_private=True)
    assert [read(node, names[0], path, revision).status for revision in ("main", commit)] == [401, 401]
    assert ask(f"{node.url}/api/models/{names[0]}/revision/{commit}").status == 401
    set_private(node, own, is_private=False)
    assert read(node, names[0], path, commit).status == 200


def test_what_was_learned_before_a_restart_still_counts(hub, own, tmp_path):
    old, commit = f"{own}-old", head(hub, own)
    lead(hub, old, own)
    with NodeProcess(tmp_path / "node", hub.url) as node:
        assert read(node, old, revision=commit).status == 200
    with NodeProcess(tmp_path / "node", hub.url) as node:
        set_private(node, own, is_private=True)
        assert read(node, old, revision=commit).status == 401


def test_a_refusal_under_one_name_counts_for_the_others(hub, node, own):
    old, commit = f"{own}-old", head(hub, own)
    lead(hub, old, own)
    assert read(node, old).status == read(node, own).status == 200
    repo = hub.folder.load("models", own)
    repo.private = True
    repo.save(hub.folder.folder("models", own))
    assert read(node, own, revision=commit).status == 200  # the node has not heard of it
    assert read(node, old, "w.bin").status == 401
    assert read(node, own, revision=commit).status == read(node, old, revision=commit).status == 401


def test_a_write_is_seen_under_every_name(hub, node, own):
    names = (f"{own}-old", own.upper(), own)
    for name in names[:2]:
        lead(hub, name, own)
    assert {(read(node, each).body, ask(f"{node.url}/api/models/{each}").status) for each in names} == {(b"one", 200)}
    changed = hub.folder.commit(own, {"a.txt": b"two"})
    set_private(node, own, is_private=False)
    for each in names:
        assert json.loads(ask(f"{node.url}/api/models/{each}").body)["sha"] == changed
        assert read(node, each).body == b"two"


def test_a_name_that_was_given_to_a_new_repository_goes_its_own_way(hub, node, own):
    old = f"{own}-old"
    lead(hub, old, own)
    assert (read(node, old).body, ask(f"{node.url}/api/models/{old}").status) == (b"one", 200)
    hub.folder.create(old, readers=["alice"])
    fresh = hub.folder.commit(old, {"a.txt": b"of another repository"})
    assert ask(f"{node.url}/api/models/{old}", Cache_Control="no-cache").status == 200
    assert read(node, old).body == b"of another repository"
    hub.reset()
    set_private(node, own, is_private=True)
    assert read(node, old, revision=fresh).status == 200
    assert not hub.stats()["by_kind"].get("resolve"), "a change of the other repository was taken for one of its own"
    assert read(node, old, revision=head(hub, own)).status == 404, "of the repository that had this name before"


def test_names_lead_on_and_in_circles():
    aliases = Aliases()
    assert aliases.lead("a", "b") == aliases.lead("b", "c") == set()
    assert (aliases.names("a"), aliases.names("c")) == (["a", "b", "c"], ["c"])
    assert aliases.is_known("a", "c")  # the Hub may name the last one alone
    assert aliases.lead("a", "c") == set()
    assert aliases.names("a") == ["a", "b", "c"]
    assert aliases.lead("c", "a") == set()  # exchanged names
    assert aliases.names("b") == ["b", "c", "a"]
    assert aliases.leading_to(["c"]) == {"a", "b", "c"}


def test_where_a_name_led_before_it_led_elsewhere_is_void():
    aliases = Aliases({"a": "b", "b": "c", "x": "c"})
    assert aliases.lead("b", "d") == {"a", "b"}
    assert aliases.names("a") == ["a", "b", "d"]
    assert aliases.lead("b", "b") == {"a", "b"}  # a new repository has this name
    assert aliases.is_known("b", "b")
    assert aliases.names("a") == ["a", "b"]


def test_what_there_is_no_room_for_is_void():
    aliases = Aliases({"a": "b", "b": "c"}, limit=2)
    assert aliases.lead("x", "y") == {"a"}
    assert aliases.lead("x2", "y") == {"b"}
    assert set(aliases.known) == {"x", "x2"}


async def test_a_write_counts_for_all_spellings_and_for_names_that_lead_to_them(tmp_path):
    """The Hub may take a write under any spelling without leading to another."""
    catalog = Catalog(tmp_path)
    for name in ("models/Acme/Tiny", "models/acme/tin", "datasets/Acme/Tiny"):
        catalog.told(name, 100.0, is_open=True)
    catalog.led("models/acme/old", "models/Acme/Tiny", 100.0)
    names = {"models/acme/tiny", "models/Acme/Tiny", "models/acme/old"}
    assert catalog.known_as("models/acme/tiny") == names
    await catalog.close()


async def test_blobs_of_every_name_are_shared_no_longer(tmp_path):
    catalog = Catalog(tmp_path)
    shut: list[str] = []
    catalog.on_shut = shut.append
    for name in ("models/a/old", "models/a/own"):
        catalog.told(name, 1.0, is_open=True)
    catalog.led("models/a/old", "models/a/own", 1.0)
    catalog.refused("models/a/own", 2.0, is_hidden=True)
    assert sorted(shut) == ["models/a/old", "models/a/own"]
    catalog.told("models/a/old", 3.0, is_open=True)
    catalog.told("models/a/own", 3.0, is_open=True)
    catalog.refused("models/a/old", 4.0, is_hidden=True)
    assert sorted(shut[2:]) == ["models/a/old", "models/a/own"]
    catalog.led("models/a/older", "models/a/own", 5.0)
    assert shut[4:] == ["models/a/older"]
    await catalog.close()

"""A Hub over TLS: if its certificate is not trusted, no answer of it is used, for any kind of request."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.http import Answer, ask
from tests.hub.process import HubProcess
from tests.mesh.certificates import Authority
from tests.node import NodeProcess

REPO = "acme/tiny"
BIG = random.Random(1).randbytes((1 << 20) + 123)
SMALL = b'{"hidden_size": 4}'


@contextmanager
def hub_and_node(folder: Path, hub: Authority, cdn: Authority) -> Iterator[tuple[HubProcess, NodeProcess]]:
    """A Hub with certificates of these authorities, and a node that trusts only the one of `folder / "ours"`."""
    tls, cdn_tls = hub.sign("hub", address="127.0.0.1"), cdn.sign("cdn", address="127.0.0.1")
    environment = {"SSL_CERT_FILE": str(folder / "ours" / "mesh-ca.pem")}
    with (
        HubProcess(folder / "hub", tls=tls, cdn_tls=cdn_tls) as process,
        NodeProcess(folder / "node", process.url, environment=environment) as node,
    ):
        process.folder.commit(REPO, {"model.bin": BIG, "config.json": SMALL})
        yield process, node


def questions(node: NodeProcess) -> list[Answer]:
    """Use each way to the Hub: metadata, a listing, a small file, and a request that only passes through."""
    return [
        ask(f"{node.url}/{REPO}/resolve/main/model.bin", "HEAD"),
        ask(f"{node.url}/api/models/{REPO}"),
        ask(f"{node.url}/{REPO}/resolve/main/config.json"),
        ask(f"{node.url}/docs/hub/index", X_Echo="1"),
    ]


def test_a_hub_is_believed_whose_authority_is(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours")
    with hub_and_node(tmp_path, ours, ours) as (_, node):
        assert [answer.status for answer in questions(node)] == [200] * 4
        assert ask(f"{node.url}/{REPO}/resolve/main/model.bin").body == BIG


def test_a_hub_that_anybody_could_be_is_asked_nothing(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    with hub_and_node(tmp_path, theirs, ours) as (hub, node):
        for answer in questions(node):
            assert answer.status == 502
            assert "CERTIFICATE_VERIFY_FAILED" in (answer["X-Error-Message"] or "")
        assert hub.stats()["requests"] == {}


def test_storage_that_anybody_could_be_is_asked_nothing(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    with hub_and_node(tmp_path, ours, theirs) as (hub, node):
        assert [answer.status for answer in questions(node)] == [200] * 4
        answer = ask(f"{node.url}/{REPO}/resolve/main/model.bin")
        assert answer.status == 502
        assert "CERTIFICATE_VERIFY_FAILED" in (answer["X-Error-Message"] or "")
        assert "cdn" not in hub.stats()["by_kind"]

"""Which node a command speaks to."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from proxy.commands.local import LocalNode, find
from tests.hub.process import HubProcess

RECORDED = "127.0.0.1:8190"


@pytest.mark.parametrize(
    ("flags", "listen", "endpoint", "expected"),
    [
        ({}, "", "", "http://localhost:8190"),
        ({}, "", "http://elsewhere:80", "http://localhost:8190"),
        ({}, "127.0.0.1:8092", "", "http://localhost:8092"),
        ({}, "0.0.0.0:8092", "http://elsewhere:80", "http://localhost:8092"),
        ({}, "127.0.0.1:0", "", "http://localhost:8190"),
        ({"listen": "127.0.0.1:8093"}, "127.0.0.1:8092", "", "http://localhost:8093"),
        ({"data_dir": "given"}, "127.0.0.1:8092", "", "http://localhost:8190"),
        ({"data_dir": "empty"}, "", "http://elsewhere:80/hf", "http://elsewhere:80"),
        ({"data_dir": "empty"}, "", "", "http://localhost:8090"),
    ],
)
def test_flags_count_more_than_the_environment_and_that_more_than_what_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, str], listen: str, endpoint: str, expected: str
) -> None:
    for name in ("usual", "given", "empty"):
        (tmp_path / name).mkdir()
    for name in ("usual", "given"):
        (tmp_path / name / "node.json").write_text(json.dumps({"listen": RECORDED}))
    for name, value in (("LISTEN", listen), ("DATA_DIR", str(tmp_path / "usual"))):
        monkeypatch.setenv(f"HUBMESH_{name}", value)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    if "data_dir" in flags:
        flags = flags | {"data_dir": str(tmp_path / flags["data_dir"])}
    assert find(flags).url.replace("127.0.0.1", "localhost") == expected


def test_what_is_no_node_is_said_to_be_none(hub: HubProcess) -> None:
    with pytest.raises(click.ClickException, match="is not a hubmesh node"):
        LocalNode(hub.url).status()

"""Which node a command talks to."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from proxy.commands.local import LocalNode, find
from tests.hub.process import HubProcess

RECORDED = "127.0.0.1:8190"  # in the usual data directory, and in another one


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ({}, {}, 8190),
        ({}, {"HF_ENDPOINT": "http://localhost:80"}, 8190),
        ({}, {"HUBMESH_LISTEN": "127.0.0.1:8092"}, 8092),
        ({}, {"HUBMESH_LISTEN": "0.0.0.0:8092", "HF_ENDPOINT": "http://localhost:80"}, 8092),
        ({}, {"HUBMESH_LISTEN": "127.0.0.1:0"}, 8190),
        ({}, {"HUBMESH_LISTEN": "127.0.0.1:8092", "HUBMESH_DATA_DIR": "other"}, 8190),
        ({}, {"HUBMESH_LISTEN": "127.0.0.1:8092", "HUBMESH_DATA_DIR": "empty"}, 8092),
        ({"listen": "127.0.0.1:8093"}, {"HUBMESH_LISTEN": "127.0.0.1:8092"}, 8093),
        ({"data_dir": "other"}, {"HUBMESH_LISTEN": "127.0.0.1:8092"}, 8190),
        ({"config": "file"}, {}, 8190),
        ({"config": "file"}, {"HUBMESH_DATA_DIR": "other"}, 8190),
        ({"config": "file"}, {"HUBMESH_DATA_DIR": "empty", "HF_ENDPOINT": "http://localhost:80"}, 8094),
        ({"data_dir": "empty"}, {"HF_ENDPOINT": "http://localhost:80/hf"}, 80),
        ({"data_dir": "empty"}, {}, 8090),
    ],
)
def test_the_node_is_the_one_that_is_named_most_clearly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, str],
    environment: dict[str, str],
    expected: int,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (".cache/hubmesh", "other", "empty"):
        (tmp_path / name).mkdir(parents=True)
        if name != "empty":
            (tmp_path / name / "node.json").write_text(json.dumps({"listen": RECORDED}))
    (tmp_path / "file").write_text('listen = "127.0.0.1:8094"')
    for name in ("HUBMESH_LISTEN", "HUBMESH_DATA_DIR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert urlsplit(find(flags).url).port == expected


def test_what_is_no_node_is_said_to_be_none(hub: HubProcess) -> None:
    with pytest.raises(click.ClickException, match="is not a hubmesh node"):
        LocalNode(hub.url).status()

"""Fixtures for tests of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
from aiohttp import web

from proxy import cli
from proxy.admin.metrics import Metrics
from proxy.admin.routes import add_routes
from tests.proxy.nodes import PaperNode


@pytest.fixture
def home(monkeypatch, tmp_path):
    """An empty home directory, and an environment without variables of hubmesh, the Hub's clients or proxies."""
    for name in list(os.environ):
        if name.startswith(("HUBMESH_", "HF_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(home, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """A function that runs the command line and returns (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hubmesh", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return end.value.code, shown.out, shown.err

    return run


@pytest.fixture
async def node(aiohttp_server):
    """A fake node behind a real socket; its `url` and `listen` give the address."""
    node = PaperNode()
    app = web.Application()
    add_routes(app, node, Metrics(node.stats))
    server = await aiohttp_server(app)
    node.url = f"http://127.0.0.1:{server.port}"
    node.listen = f"127.0.0.1:{server.port}"
    return node

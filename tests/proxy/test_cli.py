"""The command line: exit codes, one clear line for each error, and finding the node on this machine."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from mesh import layout
from proxy import cli
from proxy.admin.status import decode
from tests.node import NodeProcess
from tests.proxy.rights import refusing


def tls(file: str) -> tuple[str, ...]:
    return ("--mesh-tls-cert-file", file, "--mesh-tls-private-key-file", file, "--mesh-tls-ca-file", file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["serve", "--fly"], "No such option"),
        (["serve", "--listen", "here"], "--listen: 'here' is not HOST:PORT"),
        (["serve", "--max-size", "big"], "--max-size: 'big' is not a size"),
        (["serve", "--allow-host", "bad host!"], "--allow-host: 'bad host!' is not a host name"),
        (["serve", "--listen", "[::1]:1", "--mesh-listen", "[::1]:1"], "clients and peers need a port each"),
        (["serve", "--mesh-key-file", "/nowhere/key"], "mesh-key-file /nowhere/key: No such file"),
        (["serve", "--mesh-key-file", "/dev/null"], "mesh-key-file /dev/null does not hold a mesh key"),
        (["serve", "--mesh-tls-ca-file", "/ca.pem"], "mesh-tls-private-key-file and mesh-tls-ca-file go together"),
        (["serve", *tls("/nowhere.pem")], "mesh-tls: /nowhere.pem: No such file"),
        (["serve", *tls("/dev/null")], "mesh-tls: /dev/null and /dev/null do not hold a certificate and its key"),
        (["serve", "--data-dir", "/dev/null/data"], "data-dir /dev/null/data: cannot write in /dev/null"),
        (["serve", "--data-dir", "/" + "a" * 300], "File name too long"),
        (["serve", "--data-dir", "/proc/x"], "data-dir /proc/x: cannot write "),
        (["serve", "--data-dir", "/proc"], "data-dir /proc: cannot write "),
        (["serve", "--hf-cache", "/" + "a" * 300], "File name too long"),
        (["serve", "--config", "/nowhere/node.toml"], "/nowhere/node.toml: No such file"),
    ],
)
def test_a_bad_command_line_is_one_line_and_exit_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_bad_variable_is_one_line_and_exit_2(run, monkeypatch):
    monkeypatch.setenv("HUBMESH_LISTN", "x")
    assert run("serve") == (2, "", "hubmesh: HUBMESH_LISTN: no such setting (did you mean HUBMESH_LISTEN?)\n")


@pytest.mark.parametrize("proxy", ["https://us:secret@proxy:3128", "socks5://us:secret@proxy", "http://", "proxy:x"])
def test_a_proxy_that_cannot_be_used_is_one_line_and_exit_2(run, monkeypatch, tmp_path, proxy):
    for name, value in (("https_proxy", proxy), ("http_proxy", ""), ("no_proxy", "")):
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # or the node would serve if it took the proxy
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = run("serve", "--data-dir", str(tmp_path), "--listen", listen)
    assert (code, out) == (2, "")
    assert "HTTPS_PROXY has to be http://HOST:PORT" in err
    assert err.count("\n") == 1
    assert "secret" not in err


def test_help_names_every_command(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for command in cli.hubmesh.list_commands(None):
        assert f"\n  {command} " in out
        assert run(command, "--help")[0] == 0
    assert run()[:2] == (0, out)


def test_no_node_is_one_line_and_exit_1(run, unused_tcp_port):
    code, out, err = run("status", "--listen", f"127.0.0.1:{unused_tcp_port}")
    assert (code, out) == (1, "")
    assert f"no node answers at http://127.0.0.1:{unused_tcp_port}" in err
    assert "hubmesh serve" in err


def test_a_directory_below_one_that_we_may_not_look_into(run, monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "stat", refusing("secret"))
    code, _, err = run("serve", "--data-dir", str(tmp_path / "secret"))
    assert (code, err) == (2, f"hubmesh: data-dir {tmp_path}/secret: Permission denied\n")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", bytes(32), b"", b"two words\n"], ids=["bytes", "zeros", "empty", "text"]
)
def test_a_node_whose_name_was_damaged_gets_another(tmp_path, content):
    with NodeProcess(tmp_path / "node", "http://127.0.0.1:1") as node:
        first = node.status()["node_id"]
    with node:
        assert node.status()["node_id"] == first
    (tmp_path / "node" / "node-id").write_bytes(content)
    with node:
        assert node.status()["node_id"] not in (first, "")
    assert ("is no name for a node" in node.log()) == bool(content)


def test_the_budget_follows_the_disk(tmp_path):
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "max-size").write_text("11059")  # as a nearly full disk once produced it
    with NodeProcess(tmp_path / "node", "http://127.0.0.1:1") as node:
        assert node.status()["usage"]["max_bytes"] > 1 << 20


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs Linux")
@pytest.mark.parametrize(("hard", "is_said"), [(600, True), (5000, False)])
def test_as_many_files_are_open_as_the_hard_limit_allows(tmp_path, hard, is_said):
    limited = ("sh", "-c", f'ulimit -Sn 500; ulimit -Hn {hard}; exec "$@"', "sh")
    with NodeProcess(tmp_path / "node", "http://127.0.0.1:1", prefix=limited) as node:
        limits = Path(f"/proc/{node.pid}/limits").read_text()
        [soft, *_] = limits.partition("Max open files")[2].split()
        assert int(soft) == hard
    assert ("files can be open here" in node.log()) == is_said


def test_a_data_directory_in_use_is_left_alone(tmp_path):
    database = tmp_path / "node" / "catalog" / "cache.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"being written" * 1000)
    lock = layout.lock(tmp_path / "node")
    with pytest.raises(RuntimeError, match="in use by another hubmesh node"):
        NodeProcess(tmp_path / "node", "http://127.0.0.1:1").start()
    os.close(lock)
    assert database.read_bytes() == b"being written" * 1000


async def test_status_for_people_and_for_tools(run, node):
    node.stats.add("origin_received", 1000)
    node.stats.add("client_sent", 4000)
    code, out, _ = await asyncio.to_thread(run, "status", "--listen", node.listen)
    assert code == 0
    for shown in (
        "node-a (peer, hubmesh 0.1.0)",
        "2 complete and 1 incomplete files: 2.02 kB of 10 kB",
        "1 kB from the Hub",
        "75.0% of it not from the Hub",
        "node-b  10.0.0.2:8091  seed  0 s ago",
        "50 s ago (no answer)",
        "datasets/acme/rows/data.parquet",
        "20%",
    ):
        assert shown in out, out
    code, out, _ = await asyncio.to_thread(run, "status", "--json", "--listen", node.listen)
    assert decode(out.encode()).node_id == "node-a"


async def test_the_node_is_found_by_its_record_then_by_the_clients_variable(run, node, home, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{node.url}/prefix/")
    assert (await asyncio.to_thread(run, "status"))[0] == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    (home / "data").mkdir()
    (home / "data" / "node.json").write_text(json.dumps({"listen": node.listen.replace("127.0.0.1", "0.0.0.0")}))
    assert (await asyncio.to_thread(run, "status", "--data-dir", str(home / "data")))[0] == 0


async def test_a_proxy_in_the_environment_is_not_asked(run, node, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert (await asyncio.to_thread(run, "status", "--listen", node.listen))[0] == 0


async def test_something_else_on_that_port_is_said_to_be(run, aiohttp_server):
    app = web.Application()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    app.router.add_get("/-/status", page)
    server = await aiohttp_server(app)
    code, _, err = await asyncio.to_thread(run, "status", "--listen", f"127.0.0.1:{server.port}")
    assert code == 1
    assert "is not a hubmesh node" in err


LIMITED = """
import sys
import threading
left = iter(range(int(sys.argv.pop())))
start = threading.Thread.start
def limited(thread):
    if next(left, None) is None:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = limited
from proxy.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("threads", [0, 5, 8, 11])
def test_without_enough_threads_a_node_does_not_start_and_says_why(tmp_path, threads):
    """Four are tried out for the resolver, and eight pools begin with one each."""
    flags = ("--listen", "127.0.0.1:0", "--mesh-listen", "127.0.0.1:0", "--no-mdns", "--data-dir", str(tmp_path))
    command = [sys.executable, "-c", LIMITED, "serve", *flags, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "WARNING" not in line]  # of few descriptors
    assert lines == ["hubmesh: can't start new thread: the limit on processes, tasks or memory is too low for a node"]

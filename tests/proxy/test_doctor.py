"""`hubmesh doctor` names each provoked fault and its cure."""

import asyncio
import email.utils
import json
import socket
import time

import pytest
from aiohttp import web

from mesh import protocol
from proxy.admin.status import decode
from proxy.commands import checks
from proxy.commands.options import load
from tests.mesh.certificates import Authority
from tests.node import NodeProcess


@pytest.fixture
async def origin(aiohttp_server):
    """A Hub that answers every request with `status`, and knows one token."""

    class Origin:
        status = 200

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/api/whoami-v2":
            is_known = request.headers["Authorization"] == "Bearer hf_good"
            return web.json_response({"name": "alice"}, status=200 if is_known else 401)
        return web.json_response([], status=origin.status)

    origin = Origin()
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    server = await aiohttp_server(app)
    origin.url = f"http://127.0.0.1:{server.port}"
    return origin


async def found(look, *arguments):
    """Return the findings of one check that have a cure, as {what it is about: both sentences}."""
    findings = await asyncio.to_thread(lambda: list(look(*arguments)))
    assert findings
    return {finding.about: f"{finding.what} → {finding.cure}" for finding in findings if finding.level == "bad"}


@pytest.fixture
def settings(home):
    """Settings as a user would give them."""
    return lambda **flags: load({"data_dir": str(home / "data"), **flags}, {})


async def test_no_node(settings, unused_tcp_port_factory):
    mine = settings(
        listen=f"127.0.0.1:{unused_tcp_port_factory()}", mesh_listen=f"127.0.0.1:{unused_tcp_port_factory()}"
    )
    assert "hubmesh serve" in (await found(checks.node, None, "http://x", mine))["node"]


async def test_a_node_with_settings_that_the_command_was_not_given(home, unused_tcp_port):
    seed = f"127.0.0.1:{unused_tcp_port}"
    flags = {"seeds": (seed,), "data_dir": str(home / "node"), "mesh_listen": "127.0.0.1:0", "mdns": False}
    with NodeProcess(home / "node", "http://127.0.0.1:1", "--seed", seed) as node:
        status = decode(node.get("/-/status"))
    (told,) = checks.told(load({"origin": "http://127.0.0.1:1"}, {}), status)
    assert "--data-dir, --mdns, --mesh-listen, --seed, but this command was not" in told.what
    assert "with the same flags or HUBMESH_* variables" in told.cure
    assert list(checks.told(load({"origin": "http://hub.invalid", **flags}, {}), status)) == []
    assert str(home) not in str(status.settings), "what the settings are is not for every client"


async def test_a_port_that_somebody_else_has(settings):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        mine = settings(listen=f"127.0.0.1:{port}")
        assert (
            f"127.0.0.1:{port} → stop it, or set --listen"
            in (await found(checks.node, None, "http://x", mine))["ports"]
        )


async def test_an_origin_that_is_away_broken_or_not_who_it_says(settings, origin, unused_tcp_port):
    assert await found(checks.origin, settings(origin=origin.url)) == {}
    away = await found(checks.origin, settings(origin=f"http://127.0.0.1:{unused_tcp_port}"))
    assert "cannot be reached" in away["origin"]
    assert "HTTPS_PROXY" in away["origin"]
    nameless = await found(checks.origin, settings(origin="http://hub.invalid"))
    assert "make hub.invalid resolve" in nameless["origin"]
    untrusted = await found(checks.origin, settings(origin=origin.url.replace("http:", "https:")))
    assert "TLS certificates are always verified" in untrusted["origin"]
    origin.status = 503
    assert "answers HTTP 503" in (await found(checks.origin, settings(origin=origin.url)))["origin"]


async def test_a_proxy_that_no_node_can_use(settings, origin, monkeypatch):
    monkeypatch.setenv("http_proxy", "https://us:secret@proxy:3128")
    monkeypatch.setenv("no_proxy", "")
    told = (await found(checks.origin, settings(origin=origin.url)))["origin"]
    assert "HTTP_PROXY has to be http://HOST:PORT" in told
    assert "secret" not in told


@pytest.mark.parametrize("url", ["http://hub.invalid", "https://hub.invalid"])
async def test_a_proxy_that_does_not_answer_or_does_not_reach_the_hub(
    settings, origin, monkeypatch, unused_tcp_port, url
):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://us:secret@127.0.0.1:{unused_tcp_port}")
    told = (await found(checks.origin, settings(origin=url)))["origin"]
    assert f"through the proxy 127.0.0.1:{unused_tcp_port}" in told
    assert "→ start that proxy" in told
    assert "add hub.invalid to NO_PROXY" in told
    assert "secret" not in told
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, origin.url)
    origin.status = 502
    told = (await found(checks.origin, settings(origin=url)))["origin"]
    assert f"through the proxy {origin.url.removeprefix('http://')}" in told


async def test_a_clock_that_is_off():
    date = email.utils.formatdate(1_000_000, usegmt=True)
    assert await found(checks.clock, date, 1_000_020) == {}
    assert "100 s ahead of" in (await found(checks.clock, date, 1_000_100))["clock"]
    assert "100 s behind" in (await found(checks.clock, date, 999_900))["clock"]


async def test_a_token_the_hub_does_not_know(settings, origin):
    assert await found(checks.token, settings(origin=origin.url), "hf_good") == {}
    assert "hf auth login" in (await found(checks.token, settings(origin=origin.url), "hf_bad"))["token"]


@pytest.mark.parametrize(
    ("known", "offline", "what"),
    [
        (None, False, "none found: gated and private repositories need one"),
        (None, True, "none found: gated and private repositories need one"),
        ("hf_good", True, "not tried, because of --offline"),
    ],
)
def test_a_token_that_is_not_tried(settings, known, offline, what):
    assert [finding.what for finding in checks.token(settings(offline=offline), known)] == [what]


async def test_a_disk_that_is_too_small_or_not_ours(settings):
    assert "set --max-size to" in (await found(checks.disk, settings(max_size="900PB"), None))["disk"]
    assert "is not writable" in (await found(checks.disk, settings(data_dir="/dev/null/data"), None))["disk"]


async def test_a_seed_that_does_not_answer_and_a_key_for_all_to_read(settings, home, unused_tcp_port):
    key = home / "key"
    key.write_text("k" * 32)
    key.chmod(0o644)
    mine = settings(seeds=(f"127.0.0.1:{unused_tcp_port}",), mesh_key_file=str(key))
    bad = await found(checks.mesh, mine, None)
    assert f"open port {unused_tcp_port}" in bad["seed"]
    assert f"chmod 600 {key}" in bad["key"]


async def test_seeds_that_would_not_take_the_node_in(settings, home, unused_tcp_port, monkeypatch):
    mine, others = Authority(home / "authority").sign("node"), Authority(home / "other", "other").sign("node")
    keys = [home / "key", home / "another"]
    for number, key in enumerate(keys):
        key.write_text(f"{number}" * 32)

    def certified(by):
        return {"mesh_tls_cert_file": by.cert, "mesh_tls_private_key_file": by.key, "mesh_tls_ca_file": by.ca}

    def started(name, **flags):
        words = [word for flag, value in flags.items() for word in (f"--{flag.replace('_', '-')}", str(value))]
        return NodeProcess(home / name, f"http://127.0.0.1:{unused_tcp_port}", *words)

    async def said(port, **flags):
        flags = {name: str(value) for name, value in flags.items()}
        return (await found(checks.seeds, settings(seeds=(port.removeprefix("http://"),), **flags))).get("seed")

    with (
        started("open") as plain,
        started("keyed", mesh_key_file=keys[0]) as keyed,
        started("tls", **certified(mine)) as certain,
    ):
        assert await said(plain.mesh) is None
        assert await said(keyed.mesh, mesh_key_file=keys[0]) is None
        assert await said(certain.mesh, **certified(mine)) is None
        assert "another mesh key" in await said(keyed.mesh, mesh_key_file=keys[1])
        assert "this node has none" in await said(keyed.mesh)
        assert "it has no mesh key" in await said(plain.mesh, mesh_key_file=keys[0])
        assert "--mesh-tls-cert-file" in await said(certain.mesh)
        assert "does not speak TLS" in await said(plain.mesh, **certified(mine))
        assert "another authority signed it" in await said(certain.mesh, **certified(others))
        assert "is not the mesh port" in await said(plain.url)
        with monkeypatch.context() as patch:
            patch.setattr(protocol, "VERSION", protocol.VERSION + 1)
            assert "run the same hubmesh" in await said(plain.mesh)
            assert "run the same hubmesh" in await said(keyed.mesh, mesh_key_file=keys[0])
        for node in (plain, keyed, certain):  # none of them has taken the command for a node
            assert node.status()["peers"] == []
            assert "peer " not in node.log()
    bad = await found(checks.seeds, settings(mesh_key_file=str(home / "nowhere")))
    assert "cannot start with these settings: " in bad["mesh"]
    assert "nowhere" in bad["mesh"]


async def test_a_certificate_that_is_about_to_expire(settings, home):
    node = Authority(home / "authority").sign("node", days=30)
    mine = settings(
        mesh_tls_cert_file=str(node.cert), mesh_tls_private_key_file=str(node.key), mesh_tls_ca_file=str(node.ca)
    )
    now = time.time()
    assert await found(checks.certificate, mine, now) == {}
    assert "expires in 10 days" in (await found(checks.certificate, mine, now + 20 * 86400))["certificate"]
    assert "has expired → " in (await found(checks.certificate, mine, now + 31 * 86400))["certificate"]
    node.key.write_text("")
    assert "do not hold a certificate" in (await found(checks.certificate, mine, now))["certificate"]


async def test_a_network_without_multicast(monkeypatch):
    monkeypatch.setattr(checks, "_MULTICAST", "127.0.0.1")
    assert "--seed" in (await found(checks.multicast))["multicast"]


@pytest.mark.parametrize(
    ("environment", "about", "words"),
    [
        ({}, "HF_ENDPOINT", "it is not set"),
        ({"HF_ENDPOINT": "localhost:8090"}, "HF_ENDPOINT", "is not a URL"),
        ({"HF_ENDPOINT": "{node}/"}, "HF_ENDPOINT", "slash"),
        ({"HF_ENDPOINT": "http://127.0.0.1:1"}, "HF_ENDPOINT", "no hubmesh node answers"),
        (
            {"HF_ENDPOINT": "{node}", "HTTP_PROXY": "http://p:1", "NO_PROXY": "x.org"},
            "proxy",
            "export NO_PROXY=127.0.0.1",
        ),
        ({"HF_ENDPOINT": "{node}", "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE", "unset"),
        ({"HF_ENDPOINT": "{node}", "HF_HUB_ETAG_TIMEOUT": "3"}, "HF_HUB_ETAG_TIMEOUT", "after 3 s"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_clients_that_go_elsewhere(node, environment, about, words):
    environment = {name: value.replace("{node}", node.url) for name, value in environment.items()}
    bad = await found(checks.clients, environment, node.url)
    assert list(bad) == [about]
    assert words in bad[about]


async def test_clients_that_come_here(node):
    environment = {"HF_ENDPOINT": node.url, "http_proxy": "http://p:1", "no_proxy": "localhost, 127.0.0.1"}
    assert await found(checks.clients, environment, node.url) == {}


async def test_the_command_says_all_of_it(run, node, origin, monkeypatch):
    arguments = ["doctor", "--listen", node.listen, "--origin", origin.url]
    monkeypatch.setenv("HF_ENDPOINT", node.url)
    code, out, err = await asyncio.to_thread(run, *arguments)
    assert (code, err) == (0, ""), out
    assert "ok  node         node-a answers" in out
    node.not_ready, node.settings = "looking for peers", ("listen", "seed")
    code, out, _ = await asyncio.to_thread(run, *arguments, "--json")
    assert code == 1
    levels = {row["about"]: row["level"] for row in json.loads(out)}
    assert (levels["node"], levels["settings"]) == ("bad", "note"), "other settings are no fault of the node"

"""Signed requests and answers: which are accepted, which are not, and what the log says about them."""

import asyncio
import hashlib
import http.client
import logging

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

import mesh.auth
import mesh.bodies
from mesh.ask import ask
from mesh.auth import ANSWER_HEADER, MAX_SKEW, SENDER, Auth, Nonces, NotAuthentic, guard, load_key
from mesh.errors import Unavailable
from mesh.membership import Address

KEY = b"k" * 32
OTHER_KEY = b"o" * 32
NOW = 1_700_000_000.0


def at(now, node="me", key=KEY):
    return Auth(node, key, clock=lambda: now)


def reason(call, *args):
    with pytest.raises(NotAuthentic) as caught:
        call(*args)
    return caught.value.reason


def test_a_request_is_accepted_once_and_names_its_sender():
    headers = at(NOW, "sender").sign("POST", "/a?b=%20c", b"body", to="me")
    me = at(NOW)
    signed = me.check("POST", "/a?b=%20c", headers)
    assert signed.sender == "sender"
    me.check_body(signed, b"body")
    assert reason(me.check_body, signed, b"b0dy") == "body"
    assert reason(me.check, "POST", "/a?b=%20c", headers) == "replay"


@pytest.mark.parametrize(("method", "target"), [("GET", "/a"), ("POST", "/b"), ("POST", "/a?"), ("POST", "/%61")])
def test_a_signature_is_of_one_method_and_target(method, target):
    assert reason(at(NOW).check, method, target, at(NOW, "x").sign("POST", "/a")) == "key"


@given(st.integers(0, 400), st.characters(min_codepoint=33, max_codepoint=126))
def test_no_character_of_a_signature_can_be_changed(place, character):
    original = at(NOW, "sender").sign("POST", "/a", b"body", to="me")["Authorization"]
    place %= len(original)
    changed = original[:place] + character + original[place + 1 :]
    if changed != original:
        with pytest.raises(NotAuthentic):
            at(NOW).check("POST", "/a", {"Authorization": changed})


def test_clocks_may_differ_but_not_by_much():
    for skew in (-MAX_SKEW, MAX_SKEW):
        assert at(NOW).check("GET", "/", at(NOW + skew, "x").sign("GET", "/"))
    for skew in (-MAX_SKEW - 1, MAX_SKEW + 1):
        assert reason(at(NOW).check, "GET", "/", at(NOW + skew, "x").sign("GET", "/")) == "clock"


def test_who_lacks_the_key_has_another_or_means_another_node_is_told_so():
    assert reason(at(NOW).check, "GET", "/", at(NOW, "x", OTHER_KEY).sign("GET", "/")) == "key"
    assert reason(at(NOW).check, "GET", "/", at(NOW, "x", None).sign("GET", "/")) == "unsigned"
    assert reason(at(NOW, "me", None).check, "GET", "/", at(NOW, "x").sign("GET", "/")) == "keyless"
    assert reason(at(NOW).check, "GET", "/", at(NOW, "x").sign("GET", "/", to="you")) == "receiver"
    assert reason(at(NOW).check, "GET", "/", {"Authorization": "Hubmesh " + "x" * 100}) == "malformed"
    assert at(NOW, "me", None).check("GET", "/", {"Authorization": "Bearer of something else"}) is None


def test_meshes_of_two_keys_have_two_names_which_do_not_tell_the_key():
    assert at(NOW).mesh_id == at(NOW, "x").mesh_id != at(NOW, "x", OTHER_KEY).mesh_id
    assert at(NOW, "x", None).mesh_id == at(NOW, "y", None).mesh_id != at(NOW).mesh_id
    assert hashlib.sha256(KEY).hexdigest()[:16] not in at(NOW).mesh_id


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8), st.floats(0, 1)), max_size=200))
def test_nonces_are_never_accepted_twice_and_few_are_kept(tries):
    nonces, accepted, now = Nonces(limit=10), set(), 100.0
    for second, nonce, passed in tries:
        now += passed
        if nonces.add(100 + second, bytes([nonce]), now):
            assert (second, nonce) not in accepted
            accepted.add((second, nonce))
        assert len(nonces) <= 10


def test_nonces_that_expired_make_room_without_anybody_being_refused():
    nonces = Nonces(limit=100)
    for second in range(1000):
        assert nonces.add(second, b"n", float(second))
    assert len(nonces) <= MAX_SKEW + 1


def test_an_answer_belongs_to_one_request_status_and_body():
    sender, me = at(NOW, "sender"), at(NOW)
    sent, other = sender.sign("POST", "/a"), sender.sign("POST", "/a")
    answer = {ANSWER_HEADER: me.sign_answer(me.check("POST", "/a", sent), 200, b"yes")}
    sender.check_answer(sent, 200, answer, b"yes")
    assert reason(sender.check_answer, sent, 200, answer, b"no") == "key"
    assert reason(sender.check_answer, sent, 202, answer, b"yes") == "key"
    assert reason(sender.check_answer, other, 200, answer, b"yes") == "key"
    assert reason(sender.check_answer, sent, 200, {}, b"yes") == "unsigned"


def test_of_many_refused_peers_some_are_logged_and_new_ones_again_after_an_hour(monkeypatch, caplog):
    now, me, error = 1000.0, at(NOW), NotAuthentic("key")
    monkeypatch.setattr(mesh.auth.time, "monotonic", lambda: now)
    for _ in range(2):
        for number in range(1000):
            me.complain(f"10.0.{number // 250}.{number % 250}", error, "refused a request of")
    assert len(caplog.messages) == 256
    now += 3600.0
    for host in ("192.0.2.1", "192.0.2.1", "10.0.0.9"):
        me.complain(host, error, "refused a request of")
    assert len(caplog.messages) == 257, "what was said already is not repeated"
    assert "192.0.2.1" in caplog.messages[-1]


def test_a_key_file_is_refused_when_it_cannot_be_one(tmp_path):
    file = tmp_path / "key"
    file.write_bytes(b"\n" + KEY + b"\n")
    assert load_key(file) == KEY
    for content in (b"", b"short\n", b"x" * 5000):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="does not hold a mesh key"):
            load_key(file)


@pytest.fixture
async def server(aiohttp_server):
    """A guarded node "me" that answers with the sender's name; `server.read` counts the bodies that handlers saw."""

    async def handler(request):
        made.read += 1
        return web.Response(body=request.get(SENDER, "nobody").encode() + b":" + await request.read())

    app = web.Application(client_max_size=1 << 16, middlewares=[guard(Auth("me", KEY))])
    app.router.add_route("*", "/{path:.*}", handler)
    made = await aiohttp_server(app)
    made.read = 0
    return made


async def post(server: TestServer, auth: Auth, body: bytes, to: str = "", limit: int = 1000) -> bytes:
    async with aiohttp.ClientSession() as session:
        address = Address(server.host, server.port)
        return await ask(session, auth, address, "/mesh/x?y=%2F", body, limit=limit, to=to)


async def test_over_http_the_right_key_is_let_in(server):
    assert await post(server, Auth("x", KEY), b"hello", to="me") == b"x:hello"
    with pytest.raises(Unavailable, match="more than 5 bytes"):
        await post(server, Auth("x", KEY), b"hello", limit=5)
    with pytest.raises(Unavailable, match="413"):
        await post(server, Auth("x", KEY), bytes(1 << 17))


async def test_a_thread_with_the_standard_librarys_client_is_let_in(server):
    def get() -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
        connection.request("GET", "/mesh/blob?a=1", headers=Auth("x", KEY).sign("GET", "/mesh/blob?a=1", to="me"))
        response = connection.getresponse()
        status, body = response.status, response.read()
        connection.close()
        return status, body

    assert await asyncio.to_thread(get) == (200, b"x:")


@pytest.mark.parametrize(
    ("key", "expected"), [(OTHER_KEY, "another mesh key"), (None, "has a mesh key, but this node has none")]
)
async def test_without_the_right_key_nothing_is_read_and_both_logs_say_once_why(server, caplog, key, expected):
    stranger = Auth("x", key)
    for _ in range(3):
        with pytest.raises(NotAuthentic):
            await post(server, stranger, b"hello")
    assert server.read == 0
    ours = [r.getMessage() for r in caplog.records if "refused a request of 127.0.0.1" in r.getMessage()]
    theirs = [r.getMessage() for r in caplog.records if f"cannot talk to 127.0.0.1:{server.port}" in r.getMessage()]
    assert len(ours) == len(theirs) == 1
    assert expected in theirs[0]
    assert all(record.levelno == logging.WARNING for record in caplog.records if "127.0.0.1" in record.getMessage())


async def test_a_tampered_body_or_a_replay_is_refused_over_http(server):
    headers = Auth("x", KEY).sign("POST", "/mesh/x", b"hello")
    async with aiohttp.ClientSession(f"http://{server.host}:{server.port}") as session:
        statuses = []
        for body in (b"hallo", b"hello"):
            async with session.post("/mesh/x", data=body, headers=headers) as response:
                statuses.append((response.status, response.headers["WWW-Authenticate"]))
    assert statuses == [(401, 'Hubmesh reason="body"'), (401, 'Hubmesh reason="replay"')]
    assert server.read == 0


async def test_an_answer_from_somebody_without_the_key_is_not_believed(aiohttp_server, caplog):
    async def liar(_):
        return web.Response(body=b"believe me")

    app = web.Application()
    app.router.add_post("/{path:.*}", liar)
    server = await aiohttp_server(app)
    with pytest.raises(NotAuthentic, match="no mesh key"):
        await post(server, Auth("x", KEY), b"hello")
    assert await post(server, Auth("x", None), b"hello") == b"believe me"


@pytest.mark.slow
async def test_a_body_that_does_not_come_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(mesh.bodies, "_SECONDS", 0.1)
    head = Auth("x", KEY).sign("POST", "/mesh/x", b"hello")["Authorization"]
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(f"POST /mesh/x HTTP/1.1\r\nHost: x\r\nAuthorization: {head}\r\nContent-Length: 5\r\n\r\nhel".encode())
    answer = await asyncio.wait_for(reader.read(), 20)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert server.read == 0
    writer.close()

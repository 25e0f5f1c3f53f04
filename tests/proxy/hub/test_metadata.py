"""What HEAD answers say about files, and when signed URLs expire."""

import hashlib

import pytest

from mesh.content import Digest
from proxy.hub import metadata
from proxy.hub.access import token_key
from proxy.hub.client import Client

SHA256, SHA1 = "ab" * 32, "cd" * 20


def test_a_large_file_is_told_by_its_redirect():
    fields = {"X-Linked-Etag": f'"{SHA256}"', "X-Linked-Size": "123", "ETag": '"other"', "Content-Length": "999"}
    found = metadata.linked(fields | {"Content-Type": "text/plain"})
    assert found is not None
    assert (found.digest, found.size) == (Digest("sha256", SHA256), 123)
    assert not found.content_type, "it is the redirect's"
    for strange in ("9" * 5000, "\u00b2", "\u0663", "-1", "1_0", " 1", ""):
        assert metadata.linked(fields | {"X-Linked-Size": strange}) is None
    assert metadata.linked({"ETag": f'"{SHA256}"', "Content-Length": "999"}) is None


def test_a_small_file_is_told_by_the_answer_itself():
    found = metadata.direct({"ETag": f'W/"{SHA1}"', "Content-Length": "12"})
    assert found is not None
    assert (found.digest, found.size) == (Digest("git-sha1", SHA1), 12)
    assert metadata.direct({"ETag": f'"{SHA1}"', "Content-Length": "12", "Content-Encoding": "gzip"}) is None
    assert metadata.direct({"Content-Length": "12"}) is None
    assert metadata.direct({"ETag": f'"{SHA1}"', "Content-Length": "-1"}) is None
    assert metadata.direct({"ETag": f'"{SHA1}"'}) is None


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a/model.safetensors", "filename*=UTF-8''model.safetensors; filename=\"model.safetensors\""),
        ('say "hi"; \\o/é".bin', 'filename*=UTF-8\'\'%C3%A9%22.bin; filename="_\\".bin"'),
        ("50% a\\b.bin", "filename*=UTF-8''50%25%20a%5Cb.bin; filename=\"50% a\\\\b.bin\""),
        ("\udcff\u0085\r\n", "filename*=UTF-8''%3F%C2%85%0D%0A; filename=\"____\""),
    ],
)
def test_a_file_is_saved_under_its_own_name(path, names):
    assert metadata.disposition(path) == f"inline; {names}"


def test_a_tree_tells_of_files():
    small = {"type": "file", "path": "a/b.json", "oid": SHA1, "size": 12}
    large = {**small, "size": 123, "lfs": {"oid": SHA256, "size": 123, "pointerSize": 135}, "xetHash": "ef" * 32}
    assert metadata.listed(small) == ("a/b.json", metadata.FileMetadata(SHA1, 12))
    assert metadata.listed(large) == ("a/b.json", metadata.FileMetadata(SHA256, 123, xet_hash="ef" * 32))
    for strange in (
        {"type": "directory"},
        {"oid": SHA256},
        {"oid": "G" * 40},
        {"size": -1},
        {"size": 0},
        {"size": "12"},
        {"path": None},
        {"lfs": {"oid": SHA1, "size": 12}},
        {"lfs": "x"},
        {"xetHash": "ef" * 32},  # stored outside LFS: its ETag is not known
    ):
        assert metadata.listed({**small, **strange}) is None, strange


def test_the_address_of_a_small_file_names_it():
    assert metadata.named(f"/api/resolve-cache/models/a/b/c/d?%2Fa%2Fb=&etag=%22{SHA1}%22") == SHA1
    assert metadata.named(f"/a/b/resolve/main/d?etag=%22{SHA1}%22") == ""
    assert metadata.named("/api/resolve-cache/models/a/b/c/d") == ""


@pytest.mark.parametrize("empty", [hashlib.sha256().hexdigest(), hashlib.sha1(b"blob 0\0").hexdigest()])
def test_only_the_digest_of_no_bytes_makes_an_empty_file(empty):
    assert metadata.FileMetadata(empty, 0).is_empty
    assert not metadata.FileMetadata(empty, 1).is_empty
    for etag, contradicts in ((empty, False), (SHA1, True), (SHA256, True), ("no digest", False)):
        found = metadata.FileMetadata(etag, 0)
        assert (found.is_empty, found.contradicts_itself) == (etag == empty, contradicts)


@pytest.mark.parametrize("etag", ["", "abc", "g" * 40, "AB" * 32, "../" + "a" * 37])
def test_what_is_no_digest_proves_nothing(etag):
    assert metadata.FileMetadata(etag, 1).digest is None


@pytest.mark.parametrize(
    ("query", "expires_at"),
    [
        ("Expires=2000000000&Signature=x", 2e9),
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=3600", 1767225600 + 3600),
        ("X-Amz-Expires=3600", 1000 + 600),
        ("Expires=soon", 1000 + 600),
        ("Expires=%C2%B2", 1000 + 600),
        ("Expires=" + "9" * 400, 1000 + 600),
        ("X-Amz-Date=99999999T999999Z&X-Amz-Expires=3600", 1000 + 600),
        ("X-Amz-Date=20260101T000000Z&X-Amz-Expires=" + "9" * 400, 1000 + 600),
        ("Expires=900", 1000 + 600),  # our clock is ahead
        ("X-Amz-Date=19700101T000000Z&X-Amz-Expires=1000", 1000 + 600),
        ("", 1000 + 600),
    ],
)
def test_a_signed_address_says_when_it_ends(query, expires_at):
    assert metadata.expiry(f"https://cdn.example/x?{query}", 1000.0) == expires_at


@pytest.mark.parametrize(
    ("agent", "version", "waits"),
    [
        ("unknown/None; hf_hub/0.36.0; python/3.11", (0, 36), False),
        ("transformers/5; hf_hub/1.0.0; python/3.11", (1, 0), True),
        ("unknown/None; hf_hub/2.4.0.dev0; python/3.13", (2, 4), True),
        ("curl/8.0", None, True),
    ],
)
def test_the_software_that_asks_is_known_by_its_name(agent, version, waits):
    client = Client.of({"User-Agent": agent, "Authorization": "Bearer  hf_x"})
    assert (client.hub_version, client.waits_on_429, client.token) == (version, waits, "hf_x")
    assert "hf_x" not in repr(client)
    for field in ("", "Bearer", "Bearer ", "Basic abc", "Basic \udcfc"):
        assert Client.of({"Authorization": field}) == Client()


def test_a_client_is_no_more_than_a_header_field_can_carry():
    """Bytes above 127 arrive decoded as UTF-8 or as lone surrogates: not every HTTP library can send these on."""
    client = Client.of(
        {"User-Agent": "M\udcfcller/1; \u7814\t; hf_hub/2.4.0" + "x" * 9999, "Authorization": "Bearer hf_x"}
    )
    assert client.user_agent.startswith("M?ller/1; ??; hf_hub/2.4.0xx")
    assert (client.hub_version, len(client.user_agent), client.has_bad_token) == ((2, 4), 1000, False)
    for token in ("hf_\udcfc", "hf_\u00fc", "hf\t_x"):
        client = Client.of({"Authorization": f"Bearer {token}"})
        assert (client.token, client.has_bad_token) == (None, True)
        assert token_key(token)

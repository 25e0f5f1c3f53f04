"""What a node understands of Git LFS."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from mesh.content import Digest
from proxy.hub import lfs
from proxy.hub.lfs import BatchRoute, Missing, Object, ObjectRoute
from proxy.hub.urls import OtherRoute, Repo, parse

OID, OTHER = "a" * 64, "b" * 64
ROWS = Repo("datasets", "acme/rows")


def about(target: str) -> BatchRoute | ObjectRoute | None:
    route = parse(target)
    assert isinstance(route, OtherRoute)
    return lfs.parse(route)


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("/datasets/acme/rows.git/info/lfs/objects/batch", BatchRoute(ROWS)),
        ("/hf/datasets/acme/rows.git/info/lfs/objects/batch", BatchRoute(ROWS)),
        ("/gpt2.git/info/lfs/objects/batch", BatchRoute(Repo("models", "gpt2"))),
        (lfs.object_target(ROWS, Digest("sha256", OID), 7), ObjectRoute(ROWS, Digest("sha256", OID), 7)),
        (f"/datasets/acme/rows.git/info/lfs/objects/{OID}", None),
        (f"/datasets/acme/rows.git/info/lfs/objects/{OID}?size=-1", None),
        ("/acme/../x.git/info/lfs/objects/batch", None),
        ("/acme/tiny.git/info/lfs/objects/verify", None),
        ("/acme/tiny.git/info/refs?service=git-upload-pack", None),
    ],
)
def test_what_a_request_is_about(target: str, meant: object) -> None:
    assert about(target) == meant


def test_only_questions_for_downloads_are_ours_and_go_over_http() -> None:
    asked = {"operation": "download", "transfers": ["basic", "xet"], "objects": [{"oid": OID, "size": 7}]}
    sent = lfs.over_http(json.dumps(asked).encode())
    assert sent is not None
    assert json.loads(sent) == asked | {"transfers": ["basic"]}
    plain = json.dumps(asked | {"transfers": ["basic"]}, indent=3).encode()
    assert lfs.over_http(plain) == plain
    for other in (asked | {"operation": "upload"}, [], {}):
        assert lfs.over_http(json.dumps(other).encode()) is None
    assert lfs.over_http(b"\x1f\x8b\xff") is None


def test_addresses_become_ours_and_all_else_stays() -> None:
    action = {"href": "https://cdn/x?Expires=500", "header": {"X-A": "1"}, "expires_in": 300}
    answer = {
        "transfer": "basic",
        "objects": [
            {"oid": OID, "size": 7, "actions": {"download": action}},
            {"oid": OTHER, "size": 8, "error": {"code": 404, "message": "no such object"}},
            {"oid": "../../etc", "size": 8, "actions": {"download": action}},
            {"oid": "c" * 64, "size": 8, "actions": {"verify": action}},
        ],
    }
    body = json.dumps(answer).encode()
    found = lfs.objects(body, 100.0)
    assert found == {
        Digest("sha256", OID): Object(Digest("sha256", OID), 7, action["href"], {"X-A": "1"}, 400.0),
        Digest("sha256", OTHER): Missing(404, "no such object"),
    }
    said = json.loads(lfs.through_us(body, lambda found: f"http://us/{found.size}", "Basic x"))
    assert said["objects"][0]["actions"]["download"] == {"href": "http://us/7", "header": {"Authorization": "Basic x"}}
    assert said["objects"][1:] == answer["objects"][1:]
    other = json.dumps(answer | {"transfer": "xet"}).encode()
    assert lfs.through_us(other, lambda found: "", "") == other
    empty = hashlib.sha256().hexdigest()
    said_empty = [{"oid": oid, "size": 0, "actions": {"download": action}} for oid in (OID, empty)]
    body = json.dumps({"objects": said_empty}).encode()
    assert [type(found) for found in lfs.objects(body, 0).values()] == [Missing, Object]
    assert json.loads(lfs.through_us(body, lambda found: "", ""))["objects"][0] == said_empty[0]
    strange = [
        {"oid": OID, "size": 7, "actions": {"download": {"href": "http://[::1/x"}}},
        {"oid": OID, "size": 7, "actions": {"download": {"href": "https://cdn/x", "expires_in": 10**400}}},
        {"oid": OID, "size": 7, "error": {"code": float("inf")}},
        {"oid": OID, "size": -7, "actions": {"download": action}},
        {"oid": OID, "size": 7, "actions": {"download": {"href": "https://cdn/x", "header": ["X-A"]}}},
        {"oid": OID, "size": 7, "actions": []},
        {"oid": OID, "size": "7", "actions": {"download": action}},
        {"oid": OID, "size": 7, "error": "no"},
        [],
    ]
    for body in (b"<html>", b"[]", *(json.dumps({"objects": [said]}).encode() for said in strange)):
        assert lfs.objects(body, 0.0) == {}
        changed = lfs.through_us(body, lambda found: "", "")
        assert changed == body or json.loads(changed) == json.loads(body)


def test_who_asks() -> None:
    def who(field: str) -> str | None:
        client = lfs.client_of({"Authorization": field} if field else {})
        return client.token or "" if client is not None else None

    def basic(words: str) -> str:
        return "Basic " + base64.b64encode(words.encode()).decode()

    assert who("") == ""
    assert who("Bearer hf_x") == "hf_x"
    assert who(basic("alice:hf_x")) == "hf_x"
    for unknown in (basic("alice"), basic("alice:"), basic("alice:a\r\nb"), "Basic ?", "Bearer ", "Negotiate x"):
        assert who(unknown) is None, unknown

"""What a node reads of answers about repositories, and that it builds no more than that."""

import json

import msgspec
import pytest

from proxy.hub import documents, rewrite

HASH = "a" * 64


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def test_an_info_is_read_without_its_files():
    said = {"id": "acme/tiny", "sha": "c" * 40, "private": False, "gated": "auto", "disabled": None}
    files = [{"rfilename": f"{number}", "xetHash": HASH} for number in range(3)]
    assert documents.info(encoded(said | {"siblings": files, "likes": 5})) == said
    assert documents.info(encoded({"siblings": 5})) == {}


@pytest.mark.parametrize("document", [[], [{"id": "acme/tiny"}], "text", 5, None])
def test_what_is_no_object_is_read_as_it_is(document):
    assert documents.info(encoded(document)) == document


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"siblings": [', b'{"siblings": [}]}'])
def test_invalid_json_is_an_error(body):
    with pytest.raises(msgspec.DecodeError):
        documents.info(body)


def test_the_xet_names_of_trees_and_infos():
    entries = [{"path": "a", "xetHash": HASH}, {"path": "b"}, {"path": "c", "xetHash": "other"}, 5]
    assert documents.xet_names(encoded(entries)) == [(HASH, "a")]
    assert documents.xet_names(encoded({"siblings": [{"rfilename": "d", "xetHash": HASH}]})) == [(HASH, "d")]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"xetHash": 1}', b'"xetHash"', b'["xetHash"', b'{"siblings": "xetHash"}']
)
def test_what_lists_nothing_has_no_xet_names(body):
    assert documents.xet_names(body) == []


@pytest.mark.parametrize("at", [0, rewrite._STEP - 5, rewrite._STEP, 2 * rewrite._STEP + 7])
def test_a_xet_hash_is_seen_wherever_it_is(at):
    body = b" " * at + b'"xetHash"'
    assert rewrite.mentions_xet(body)
    assert not rewrite.mentions_xet(body[:-1])


def test_what_is_nested_too_deep_is_invalid_json():
    with pytest.raises(msgspec.DecodeError, match="nested too deep"):
        documents.info(b'{"id":' + b"[" * 100_000)
    assert documents.xet_names(b'[{"xetHash":' + b"[" * 100_000) == []

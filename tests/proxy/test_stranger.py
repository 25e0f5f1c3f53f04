"""An origin that is not quite the Hub, or something else in its place: nothing unproven is served, or kept."""

from __future__ import annotations

import hashlib

import pytest

from proxy.catalog import File
from proxy.hub.errors import OriginUnavailable
from proxy.hub.metadata import FileMetadata
from tests.proxy.parts import TINY, parts
from tests.stranger import COMMIT, Stranger, file, git_sha1, said

BODY = b'{"hidden_size": 768}'


async def test_what_is_said_to_be_empty_and_is_not_is_neither_served_nor_kept(tmp_path):
    """As a proxy says that answers a HEAD with `Content-Length: 0`: no byte would come that could be checked."""
    told = {"Content_Length": 0}
    large = {"X_Linked_Etag": f'"{hashlib.sha256(BODY).hexdigest()}"', "X_Linked_Size": 0, "Location": "/storage"}

    def script(method, target, headers):
        return said(302, X_Repo_Commit=COMMIT, **large) if "large" in target else file(BODY, **told)

    with Stranger(script) as origin:
        async with parts(origin.url, tmp_path) as node:
            for path in ("config.json", "large.bin"):
                with pytest.raises(OriginUnavailable, match="empty"):
                    await node.file(path)
                assert node.catalog.file(str(TINY), COMMIT, path) is None
            # Neither what was kept of such answers before.
            node.catalog.set_file(str(TINY), COMMIT, "old.json", File(FileMetadata(git_sha1(BODY), 0), 1e12))
            with pytest.raises(OriginUnavailable, match="empty"):
                await node.file("old.json", revision=COMMIT)
            told.clear()
            assert (await node.file("config.json")).size == len(BODY)

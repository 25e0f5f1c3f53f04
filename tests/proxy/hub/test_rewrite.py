"""URLs at the Hub and pointers to Xet, removed from what clients see."""

import pytest

from proxy.hub import rewrite

HUB = "https://huggingface.co"
MIRROR = "http://mirror.local:8080/hf"


@pytest.mark.parametrize(
    ("value", "origin", "prefix", "seen"),
    [
        (f"{HUB}/acme/new/resolve/main/a?x=1", HUB, "", "/acme/new/resolve/main/a?x=1"),
        ("https://hf.co/acme/new", HUB, "", "/acme/new"),
        ("/acme/new", HUB, "/hf", "/hf/acme/new"),
        (f"{HUB}", HUB, "", "/"),
        (f"{MIRROR}/acme/new", MIRROR, "", "/acme/new"),
        ("/hf/acme/new", MIRROR, "", "/acme/new"),
        (f"{HUB}/acme/new", MIRROR, "", "/acme/new"),
        ("https://cdn.example/x?Signature=1", HUB, "/hf", "https://cdn.example/x?Signature=1"),
        ("//elsewhere.example/x", HUB, "", "//elsewhere.example/x"),
        ("https://huggingface.co.evil.example/x", HUB, "", "https://huggingface.co.evil.example/x"),
    ],
)
def test_a_redirect_within_the_hub_stays_with_us(value, origin, prefix, seen):
    assert rewrite.location(value, origin, prefix) == seen


def test_the_next_page_is_ours_and_xet_is_gone():
    field = (
        f'<{HUB}/api/models/a/b/tree/main?cursor=x%2Cy>; rel="next", '
        f'<{HUB}/api/models/a/b/xet-read-token/main>; rel="xet-auth", '
        '<https://cas-server.xethub.hf.co/v1/reconstructions/00>; title="a, b"; rel="xet-reconstruction-info"'
    )
    ours = "http://localhost:8090/hf"
    assert rewrite.link(field, HUB, ours, without_xet=True) == (
        f'<{ours}/api/models/a/b/tree/main?cursor=x%2Cy>; rel="next"'
    )
    kept = rewrite.link(field, HUB, ours, without_xet=False)
    assert kept is not None
    assert f'<{ours}/api/models/a/b/xet-read-token/main>; rel="xet-auth"' in kept
    assert rewrite.link('<https://x/y>; rel="xet-auth"', HUB, ours, without_xet=True) is None


def test_xet_hashes_leave_trees_and_infos_and_nothing_else_does():
    entry = {"type": "file", "oid": "1", "size": 5, "path": "a", "lfs": {"oid": "2"}}
    assert rewrite.strip_xet([entry | {"xetHash": "3"}, "odd", None], "auto") == [entry, "odd", None]
    assert rewrite.strip_xet({"siblings": [entry | {"xetHash": "3"}]}, "auto") == {"siblings": [entry]}
    assert rewrite.strip_xet({"error": "x"}, "auto") == {"error": "x"}
    assert rewrite.strip_xet(None, "auto") is None
    huge = entry | {"xetHash": "3", "size": 50 * 10**9 + 1}
    assert rewrite.strip_xet([dict(huge)], "auto") == rewrite.strip_xet([dict(huge)], "always") == [huge]
    assert "xetHash" not in rewrite.strip_xet([dict(huge)], "never")[0]


@pytest.mark.parametrize(
    ("target", "keeps"),
    [
        ("/buckets/acme/stuff/resolve/a", True),
        ("/api/buckets/acme/stuff/paths-info", True),
        ("/api/models/a/b/xet-read-token/main", True),
        ("/api/datasets/a/b/xet-write-token/main?create_pr=1", True),
        ("/a/b/resolve/main/xet-read-token/x", False),
        ("/api/models/a/b/tree/main", False),
        ("/a/b/raw/main/x", False),
    ],
)
def test_buckets_and_tokens_keep_their_way_to_xet(target, keeps):
    assert rewrite.keeps_xet(target) is keeps

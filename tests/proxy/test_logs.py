"""Log lines contain no secrets and request ids, and cannot be forged."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.logs import _SECRETS, redact, set_up

TOKEN = "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"
SIGNED = "https://cdn-lfs.hf.co/a/b?X-Amz-Signature=5ec4e7&Expires=1&Policy=p0l1cy&Key-Pair-Id=KEY"


@pytest.fixture
def stream():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"token is {TOKEN}", TOKEN),
        (f"Authorization: Bearer {TOKEN}", TOKEN),
        ("{'Authorization': 'Bearer short1', 'x': 1}", "short1"),
        ("authorization=Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        (f"GET {SIGNED} gave 403", "5ec4e7"),
        (f"GET {SIGNED} gave 403", "p0l1cy"),
        ("GET /a/b?x=1&X-Amz-Signature=5ec4e7&y=2", "5ec4e7"),
        ("https://user:pa55@proxy.example:3128/", "pa55"),
        ('{"accessToken": "x3t-s3cr3t", "exp": 1}', "x3t-s3cr3t"),
        ("X-Xet-Access-Token: x3t-s3cr3t", "x3t-s3cr3t"),
        ("Client(token='odd-one', user_agent='x')", "odd-one"),
        ("eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
    ],
)
def test_secrets_are_hidden(text, secret):
    assert secret in text
    assert secret not in redact(text)


@pytest.mark.parametrize("secret", _SECRETS, ids=lambda secret: secret.words[0])
@given(st.data())
def test_whatever_looks_like_a_secret_has_one_of_its_words(secret, data):
    text = data.draw(st.from_regex(secret.pattern))
    assert any(word in text.casefold() for word in secret.words)


def test_what_is_no_secret_stays():
    for text in (
        "GET /acme/tiny/resolve/main/config.json 200 hit 3 ms",
        "HEAD /api/models/acme/tiny/tree/main?recursive=true&expand=false 200",
        "sha256:" + "ab" * 32,
        "user agent unknown/None; hf_hub/2.4.0; hf_transfer/0.1.9",
        "file tokenizer.json of https://huggingface.co/acme/tiny",
    ):
        assert redact(text) == text
    assert redact(SIGNED) == "https://cdn-lfs.hf.co/a/b?[hidden]"


def boom() -> None:
    raise ValueError(f"cannot use {TOKEN}")


def test_text_lines(stream):
    set_up("text", "info", stream)
    log = logging.getLogger("proxy.some")
    log.debug("not shown")
    log.info("asked for %s", "/x\n2026 ERROR forged: line\x1b[2J", extra={"request_id": "r-1"})
    try:
        boom()
    except ValueError:
        log.exception("went wrong")
    first, second, *traceback = stream.getvalue().splitlines()
    assert first.endswith(r" INFO    proxy.some: asked for /x\n2026 ERROR forged: line\x1b[2J  [r-1]")
    assert second.endswith(" ERROR   proxy.some: went wrong")
    assert traceback[-1].startswith("ValueError: cannot use")
    assert TOKEN not in stream.getvalue()


def test_json_lines(stream):
    set_up("json", "debug", stream)
    log = logging.getLogger("proxy.some")
    extra = {"request_id": "r-2", "client": "127.0.0.1", "token": "odd-one", "peers": 3}
    log.info('said "%s"', "a\nb", extra=extra)
    try:
        boom()
    except ValueError:
        log.exception("went wrong")
    one, other = map(json.loads, stream.getvalue().splitlines())
    assert one.pop("time").endswith("Z")
    assert one == {
        "level": "info",
        "logger": "proxy.some",
        "message": 'said "a\nb"',
        "request_id": "r-2",
        "client": "127.0.0.1",
        "token": "[hidden]",
        "peers": "3",
    }
    assert "request_id" not in other
    assert "ValueError" in other["exception"]
    assert TOKEN not in stream.getvalue()

"""Which proxy is used for a host, and which credentials it gets."""

from __future__ import annotations

import pytest

from mesh.proxies import Proxy, proxy_of


def told(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.setenv(name, environment.get(name, ""))


@pytest.mark.parametrize(
    ("text", "proxy", "url"),
    [
        ("http://proxy:3128", Proxy("proxy", 3128), "http://proxy:3128"),
        ("proxy:3128", Proxy("proxy", 3128), "http://proxy:3128"),
        ("http://proxy/", Proxy("proxy", 80), "http://proxy:80"),
        ("http://[::1]:3128", Proxy("::1", 3128), "http://[::1]:3128"),
        ("us:p@proxy:1", Proxy("proxy", 1, "us", "p"), "http://us:p@proxy:1"),
        ("http://u%40s:p%3A%2F@proxy:1", Proxy("proxy", 1, "u@s", "p:/"), "http://u%40s:p%3A%2F@proxy:1"),
        ("http://us@proxy:1", Proxy("proxy", 1, "us"), "http://us:@proxy:1"),
    ],
)
def test_a_proxy_as_it_may_be_written(monkeypatch: pytest.MonkeyPatch, text: str, proxy: Proxy, url: str) -> None:
    told(monkeypatch, https_proxy=text, no_proxy="near.example")
    found = proxy_of("https", "hub.example")
    assert found == proxy
    assert found.url == url
    assert proxy_of("http", "hub.example") is None
    assert proxy_of("https", "cdn.near.example") is None


def test_whom_it_knows_by_a_password_says_it_and_nobody_else_anything() -> None:
    proxy = Proxy("proxy", 1, "Aladdin", "open sesame")
    assert proxy.headers == {"Proxy-Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="}  # RFC 7617, section 2
    assert "sesame" not in repr(proxy)
    assert Proxy("proxy", 1).headers == {}

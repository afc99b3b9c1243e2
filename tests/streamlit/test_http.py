"""HTTP responses through the sidecar equal direct ones."""

from __future__ import annotations

import re

import pytest
from support import http


def _static_asset(address: str) -> str:
    page = http.get(address, "/").body.decode()
    found = re.search(r'src="\.?/?(static/[^"]+\.js)"', page)
    assert found, f"no script in the page: {page[:500]}"
    return "/" + found[1]


def _without_gzip_time(body: bytes) -> bytes:
    """Removes the time from the gzip header, which some servers write per response (RFC 1952 section 2.3)."""
    return body[:4] + body[8:] if body.startswith(b"\x1f\x8b") else body


@pytest.mark.parametrize("path", ["/", "/_stcore/health", "/_stcore/host-config", "/no/such/page?x=%20y"])
def test_a_get_has_the_same_response_as_without_the_sidecar(server, sidecar, path) -> None:
    direct, through = http.get(server.address, path), http.get(sidecar.address, path)
    assert through.status == direct.status
    assert through.body == direct.body
    assert through.end_to_end_headers() == direct.end_to_end_headers()
    assert {k.lower() for k, _ in through.headers} >= {k.lower() for k, _ in direct.headers} - {"connection"}


@pytest.mark.parametrize("headers", [{}, {"Accept-Encoding": "gzip"}, {"Range": "bytes=10-99"}])
def test_a_static_asset_has_the_same_response_as_without_the_sidecar(server, sidecar, headers) -> None:
    path = _static_asset(server.address)
    direct, through = http.get(server.address, path, headers), http.get(sidecar.address, path, headers)
    assert direct.status in (200, 206) and direct.body, f"{path} directly: {direct.status}"
    assert through.status == direct.status
    assert _without_gzip_time(through.body) == _without_gzip_time(direct.body)
    assert through.end_to_end_headers() == direct.end_to_end_headers()


def test_an_asset_in_the_browsers_cache_is_not_sent_again(server, sidecar) -> None:
    path = _static_asset(server.address)
    tag = http.get(server.address, path).header("etag")
    assert tag, f"{path} has no ETag"
    answer = http.get(sidecar.address, path, {"If-None-Match": tag})
    assert (answer.status, answer.body) == (304, b"")


def test_head_returns_the_length_and_no_body(server, sidecar) -> None:
    path = _static_asset(server.address)
    direct, through = (http.request(address, "HEAD", path) for address in (server.address, sidecar.address))
    assert (through.status, through.body) == (direct.status, b"")
    assert through.header("content-length") == direct.header("content-length")

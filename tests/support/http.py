"""One HTTP/1.1 exchange on its own connection, with nothing added or hidden."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import Mapping

# Hop-by-hop headers (RFC 9110 section 7.6.1), and those that differ in each response.
_NOT_END_TO_END = {"connection", "keep-alive", "transfer-encoding", "date", "set-cookie"}


@dataclass(frozen=True)
class Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def end_to_end_headers(self) -> list[tuple[str, str]]:
        """The headers that a transparent proxy must not change, sorted."""
        return sorted((k.lower(), v) for k, v in self.headers if k.lower() not in _NOT_END_TO_END)

    def xsrf_cookie(self) -> tuple[str, str]:
        """Name and value of Streamlit's XSRF cookie; its name has a prefix in newer versions."""
        for key, value in self.headers:
            name, _, rest = value.partition("=")
            if key.lower() == "set-cookie" and name.endswith("_xsrf"):
                return name, rest.split(";", 1)[0].strip('"')
        raise AssertionError(f"no XSRF cookie among {self.headers}")


def request(
    address: str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Response:
    """Sends one request to `address` ("host:port") and reads the whole response. Fails after 30 s without data."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Response(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


def get(address: str, path: str, headers: Mapping[str, str] | None = None) -> Response:
    return request(address, "GET", path, headers)

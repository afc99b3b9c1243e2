"""Writes the first inputs of every fuzz target, from recorded sessions, settings and pages."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from pathlib import Path
from typing import Iterator

HERE = Path(__file__).resolve().parent
KEY = b"\x37\xfa\x21\x3d"
# The first bytes of the tap target's events; the low bit is the sender.
BYTES, FRAME, HEARTBEAT, PONG, NATIVE_ACK, TIME = 0 << 1, 2 << 1, 6 << 1, 8 << 1, 10 << 1, 11 << 1
CAPABILITY, END = 14 << 1, 15 << 1
UPSTREAM = 1
PAGES = [
    '<!doctype html><html lang="en"><head><meta charset="UTF-8"/><title>Streamlit</title></head><body></body></html>',
    "<!--\n Copyright -->\n\n<!DOCTYPE html>\n<HTML>\n  <HEAD class='a'><script>window.prerenderReady=!1</script></HEAD>",
    '<head data="a>b"><title>Streamlit</title></head>',
    '<head><script src="./_heartbeat/watchdog.js"></script><title>Streamlit</title></head>',
    "<html><head><body><title>Streamlit</title>",
    "\ufeff<!--><head><title>Streamlit Component</title></head>",
]
WEBSOCKET = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
REQUESTS = [
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://a:80/x?y=1 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    "OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    f"GET /_stcore/stream HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\n{WEBSOCKET}\r\n\x82\x83",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X, Host\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: 1\r\nHost: b\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5;e=1\r\nabcde\r\n0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-One, Host, close\r\nX-One: 1\r\nKeep-Alive: 1\r\nUpgrade: h2c\r\nTE: gzip\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1, 10.0.0.1\r\nX_Forwarded_For: 1\r\nForwarded: for=[2001:db8::1]:1\r\n\r\n",
]
BALANCED = [
    b"PROXY TCP4 192.0.2.1 10.0.0.1 32768 80\r\nGET",
    b"PROXY TCP6 2001:db8::7 ::1 32768 80\r\nGET",
    b"PROXY UNKNOWN ffff::1 x\r\nGET",
    b"PROXY UNKNOWN\r\n",
]


def sessions() -> Iterator[list[tuple[bool, bytes]]]:
    """The messages of each capture, and whether the server sent them (tests/captures/README.md)."""
    for path in sorted((HERE.parent / "tests/captures").glob("session-*.bin")):
        records, rest = [], path.read_bytes()
        while rest:
            length = struct.unpack(">I", rest[9:13])[0]
            records.append((rest[:1] == b"S", rest[13 : 13 + length]))
            rest = rest[13 + length :]
        yield records


def frame(server: bool, payload: bytes, first: int = 0x82) -> bytes:
    """One frame as the sender would send it (RFC 6455 section 5.2)."""
    bit = 0 if server else 0x80
    if len(payload) < 126:
        header = struct.pack(">BB", first, bit | len(payload))
    else:
        header = struct.pack(">BBH", first, bit | 126, len(payload))
    return header + (payload if server else KEY + bytes(byte ^ KEY[at % 4] for at, byte in enumerate(payload)))


def tap(records: list[tuple[bool, bytes]]) -> bytes:
    """A session as events of the tap target. After every heartbeat come time and the pong that it may cause."""
    events = b""
    for server, payload in records:
        wire = frame(server, payload)
        events += bytes([BYTES | server]) + struct.pack(">H", len(wire)) + wire
        if payload == b"\x88\x01\x01":
            events += bytes([TIME, 0, 40, PONG, TIME, 9, 0, PONG])
    return events


def deflated(records: list[tuple[bool, bytes]], takeover: bool) -> bytes:
    """The browser's messages as permessage-deflate sends them, each after its length (RFC 7692 section 7.2.1)."""
    compress, messages = zlib.compressobj(wbits=-15), b""
    for payload in (payload for server, payload in records if not server):
        if not takeover:
            compress = zlib.compressobj(wbits=-15)
        wire = compress.compress(payload) + compress.flush(zlib.Z_SYNC_FLUSH)
        messages += struct.pack(">H", len(wire) - 4) + wire[:-4]
    return messages[:8000]


def seeds() -> Iterator[tuple[str, bytes]]:
    """Every seed with its target."""
    recorded = list(sessions())
    assert len(recorded) >= 8, "captures are missing"
    for records in recorded:
        for flags, capability in ((0, 0), (0, 1), (0, 2), (1, 1), (4, 1), (8, 0)):
            yield "tap", bytes([flags, CAPABILITY, capability]) + tap(records) + bytes([END, 2, END, 0])
        for server, payload in records:
            yield "messages", payload
            yield "header", frame(server, payload)[:64]
        for server in (False, True):
            whole = b"".join(frame(server, payload) for by_server, payload in records if by_server == server)
            yield "scanner", bytes([server, 40, 200]) + whole[:4000]
    for page in PAGES:
        yield "page", struct.pack(">H", len(page) // 2) + page.encode()
    for request in REQUESTS:
        for flags in (0, 1):
            yield "request", bytes([flags, 255, flags * 3]) + request.encode("latin-1")
    for header in BALANCED:
        yield "proxy_protocol", bytes([255, 0]) + header
    for command, family, rest in ((1, 0x11, 12), (1, 0x21, 36), (1, 0x31, 216), (1, 0x12, 20), (0, 0, 0), (0, 0x11, 12)):
        header = struct.pack(">BBH", 0x20 | command, family, rest) + bytes(range(1, rest + 1)) + b"GET"
        yield "proxy_protocol", bytes([255, 6]) + b"\r\n\r\n\0\r\nQUIT\n" + header
    for records in recorded:
        for takeover in (0, 1):
            yield "inflate", bytes([takeover, 7, 99, 0xff, 0xff]) + deflated(records, takeover == 0)
        plain = b"".join(bytes([len(payload[:200]), 3]) + payload[:200] for _, payload in records[:40])
        yield "inflate", bytes([0x80 | 6 << 4 | 1, 200, 3, 0, 0]) + plain
    settings = re.findall(r'key: "([^"]+)"', (HERE.parent / "src/config/settings.rs").read_text())
    assert len(settings) >= 10, "cannot find the table of settings"
    values = ["127.0.0.1:0", "http://127.0.0.1:8501", "unix:/run/app.sock", "text", "info", "2s", "auto", "pong", "off", "[::1]:80"]
    for value in values:
        for setting in settings:
            table, _, key = setting.rpartition(".")
            yield "config", (f"[{table}]\n" if table else "").encode() + f'{key} = "{value}"\n'.encode()
    yield "config", b"# all\nlisten = '0.0.0.0:8500'\n\n[heartbeat]\nmode = \"answer\" # really\nstall_after = \"\"\"5s\"\"\"\n"


def main() -> None:
    """Writes each distinct seed to one file."""
    for target, seed in seeds():
        directory = HERE / "seeds" / target
        directory.mkdir(parents=True, exist_ok=True)
        (directory / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


if __name__ == "__main__":
    main()

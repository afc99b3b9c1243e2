"""Writes the first inputs of every fuzz target, made of recorded sessions, settings and pages."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path
from typing import Iterator

HERE = Path(__file__).resolve().parent
KEY = b"\x37\xfa\x21\x3d"
# Of the tap: what its events begin with; the low bit says who sends.
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


def sessions() -> Iterator[list[tuple[bool, bytes]]]:
    """What each capture recorded: whether the server sent it, and the message (tests/captures/README.md)."""
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
    """A session as events of the tap: every heartbeat is followed by time and by the pong that it may have caused."""
    events = b""
    for server, payload in records:
        wire = frame(server, payload)
        events += bytes([BYTES | server]) + struct.pack(">H", len(wire)) + wire
        if payload == b"\x88\x01\x01":
            events += bytes([TIME, 0, 40, PONG, TIME, 9, 0, PONG])
    return events


def seeds() -> Iterator[tuple[str, bytes]]:
    """Every seed with its target."""
    recorded = list(sessions())
    assert len(recorded) >= 8, "the captures are gone"
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
    settings = re.findall(r'key: "([^"]+)"', (HERE.parent / "src/config/settings.rs").read_text())
    assert len(settings) >= 10, "the table of settings is gone"
    values = ["127.0.0.1:0", "http://127.0.0.1:8501", "unix:/run/app.sock", "text", "info", "2s", "auto", "pong", "off", "[::1]:80"]
    for value in values:
        for setting in settings:
            table, _, key = setting.rpartition(".")
            yield "config", (f"[{table}]\n" if table else "").encode() + f'{key} = "{value}"\n'.encode()
    yield "config", b"# all\nlisten = '0.0.0.0:8500'\n\n[heartbeat]\nmode = \"answer\" # really\nstall_after = \"\"\"5s\"\"\"\n"


def main() -> None:
    """Writes them; the same seed is one file."""
    for target, seed in seeds():
        directory = HERE / "seeds" / target
        directory.mkdir(parents=True, exist_ok=True)
        (directory / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


if __name__ == "__main__":
    main()

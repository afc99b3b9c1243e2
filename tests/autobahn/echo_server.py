"""An echo server for Autobahn|Testsuite, built on websockets. It prints its address and echoes every message."""

from __future__ import annotations

import asyncio
import logging

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol


async def echo(connection: ServerConnection) -> None:
    """Echoes messages until the connection ends."""
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        pass


async def main() -> None:
    """Serves until killed."""
    # Autobahn sends protocol errors on purpose; its reports contain how each session ended.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    # No pings from this server: their timing would differ in every run.
    options = {"subprotocols": [Subprotocol("streamlit")], "max_size": None, "ping_interval": None}
    async with serve(echo, "127.0.0.1", 0, **options) as server:
        host, port = next(iter(server.sockets)).getsockname()[:2]
        print(f"listening on {host}:{port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

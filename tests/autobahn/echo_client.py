"""A client for Autobahn|Testsuite's fuzzing server, built on websockets. It runs every case and echoes every message.

Arguments: the server's address, a suffix for the path of every request, and the agent's name in the report.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol


async def main(address: str, suffix: str, agent: str) -> None:
    """Runs all cases in order, then requests the report."""
    logging.getLogger("websockets").setLevel(logging.CRITICAL)

    def open_at(path: str, query: str = "") -> connect:
        url = f"ws://{address}{path}{suffix}?{query}"
        return connect(url, subprotocols=[Subprotocol("streamlit")], max_size=None, ping_interval=None, proxy=None)

    async with open_at("/getCaseCount") as connection:
        count = int(await connection.recv())
    for case in range(1, count + 1):
        try:
            async with open_at("/runCase", f"case={case}&agent={agent}") as connection:
                async for message in connection:
                    await connection.send(message)
        except (ConnectionClosed, InvalidHandshake):
            pass
    async with open_at("/updateReports", f"agent={agent}") as connection:
        await connection.wait_closed()
    print(f"{count} cases done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

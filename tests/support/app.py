"""A real Streamlit server of one version. Its page can be opened directly or embedded in a host page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Mapping

from support.relay import Relay
from support.streamlit_server import APP, StreamlitServer
from support.version import Version

if TYPE_CHECKING:
    from support.host_page import HostServer


def environment(version: str) -> Path:
    """The Python of `tests/run`'s environment for that Streamlit."""
    cache = os.environ.get("HEARTBEAT_SIDECAR_TEST_CACHE")
    assert cache, "HEARTBEAT_SIDECAR_TEST_CACHE is not set: start these tests with `tests/run`"
    python = Path(cache) / f"streamlit-{version}" / "bin" / "python"
    assert python.exists(), f"{python} is missing: `tests/run` makes it"
    return python


def versions(variable: str, otherwise: str) -> list[Version]:
    """The versions in that environment variable, which `tests/run` sets; it made an environment for each."""
    return [Version(name) for name in os.environ.get(variable, otherwise).split()]


class App:
    """Runs until stopped; accepts messages from `host`. `options` are Streamlit's own."""

    def __init__(
        self, version: Version, host: HostServer, script: Path = APP, options: Mapping[str, str] | None = None
    ) -> None:
        self.version = version
        # Before 1.55 the allowed origins are hard-coded, so the relay adds the host's origin.
        origins = {"client.allowedOrigins": host.origin} if version.acks_natively else {}
        self.server = StreamlitServer(environment(version.name), script, {**origins, **(options or {})})
        self._relay = None if version.acks_natively else Relay(self.server.address, host.origin)

    @property
    def address(self) -> str:
        """The sidecar's upstream if the page is embedded: the relay if there is one, else the server."""
        return self._relay.address if self._relay else self.server.address

    def stop(self) -> None:
        if self._relay:
            self._relay.stop()
        self.server.stop()

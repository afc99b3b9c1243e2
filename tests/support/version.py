"""Facts about a Streamlit version that the tests depend on."""

from __future__ import annotations

from dataclasses import dataclass

from support import known


@dataclass(frozen=True)
class Version:
    name: str

    @property
    def line(self) -> tuple[int, int]:
        major, minor = self.name.split(".")[:2]
        return int(major), int(minor)

    @property
    def acks_natively(self) -> bool:
        return self.line >= (1, 55)

    @property
    def does_not_enforce_acks(self) -> bool:
        """Whether its page sends heartbeats at its host's request but ignores a missing ack."""
        return (1, 29) <= self.line < (1, 55)

    @property
    def keeps_sessions(self) -> bool:
        """Whether a reconnecting page keeps its session while the old connection is still open."""
        return not (1, 21) <= self.line <= (1, 60)

    @property
    def has_short_ping_timeout(self) -> bool:
        """Whether its server drops browsers that answer a ping later than 1 s, with the Tornado of `tests/run`."""
        return (1, 29) <= self.line <= (1, 46)

    @property
    def ack(self) -> bytes:
        return known.PLAIN_ACK if self.acks_natively else known.COMPATIBLE_ACK

    @property
    def origin(self) -> str:
        return "upstream" if self.acks_natively else "sidecar"

    @property
    def other_origin(self) -> str:
        return "sidecar" if self.acks_natively else "upstream"

"""What is true of a Streamlit version, as far as heartbeats go."""

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
    def does_not_heed_acks(self) -> bool:
        """Whether its page sends a heartbeat when its host asks for one, and then does not mind if there is no ack."""
        return (1, 29) <= self.line < (1, 55)

    @property
    def keeps_sessions(self) -> bool:
        """Whether a page that comes back gets its session although its old socket seems to live."""
        return not (1, 21) <= self.line <= (1, 60)

    @property
    def is_impatient(self) -> bool:
        """Whether its server closes on who takes a second to answer its ping; with the Tornado from `tests/run`."""
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

"""Expected bytes: the test app's download, a heartbeat, the acks."""

from __future__ import annotations

import hashlib

DOWNLOAD = hashlib.shake_256(b"download").digest(300_000)
"""The file behind the test app's download button."""

HEARTBEAT = bytes.fromhex("880101")
"""`BackMsg.app_heartbeat = true`, as a browser sends it."""

COMPATIBLE_ACK = bytes.fromhex("5200d00101")
"""The ack that every frontend accepts: an empty `session_event`, then `heartbeat_ack`."""

PLAIN_ACK = bytes.fromhex("d00101")
"""The ack of Streamlit 1.55 and later."""

ACKS = (COMPATIBLE_ACK, PLAIN_ACK)

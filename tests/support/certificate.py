"""A self-signed certificate for this machine, made by openssl, and the argument that makes Chromium trust it."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from pathlib import Path


class Certificate:
    """`certificate` and `key` are PEM files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
        names = ["-subj", "/CN=heartbeat-sidecar test", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        _openssl(*new, *names, "-keyout", str(self.key), "-out", str(self.certificate))

    @property
    def trust_argument(self) -> str:
        """Chromium's argument to trust this key in addition to its usual roots."""
        der = _openssl("pkey", "-in", str(self.key), "-pubout", "-outform", "DER")
        return f"--ignore-certificate-errors-spki-list={base64.b64encode(hashlib.sha256(der).digest()).decode()}"


def _openssl(*arguments: str) -> bytes:
    done = subprocess.run(["openssl", *arguments], capture_output=True, check=False)
    assert done.returncode == 0, f"openssl {arguments[0]}: {done.stderr.decode()}"
    return done.stdout

"""A self-signed certificate for a server on loopback, for tests of TLS."""

import subprocess
from pathlib import Path

from servers.install import require
from servers.process import ServerError


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Create a certificate for localhost and 127.0.0.1, and return its path and its key's."""
    certificate, key = directory / "server.crt", directory / "server.key"
    command: list[str | Path] = [
        *(require("openssl"), "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-keyout", key, "-out", certificate),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServerError(f"openssl ended with {done.returncode}: {done.stderr}")
    key.chmod(0o600)
    return certificate, key

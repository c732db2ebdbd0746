"""Fetch a picture from the address that was given for it."""

from __future__ import annotations

from io import BytesIO
from urllib.request import Request, urlopen

from fuse.errors import FuseError, one_line

SECONDS = 20
"""How long a server may be silent."""


def is_address(path: object) -> bool:
    """Whether a picture's path is an address of the web."""
    return str(path).lower().startswith(("http://", "https://"))


def fetched(address: str, max_bytes: int, where: str) -> BytesIO:
    """Return what is at an address; one byte more than `max_bytes` at most.

    Raises:
        FuseError: it cannot be fetched; its message begins with `where`.
    """
    try:
        request = Request(address, headers={"User-Agent": "fuse-prompt"})
        with urlopen(request, timeout=SECONDS) as response:
            return BytesIO(response.read(max_bytes + 1))
    except (OSError, ValueError) as error:  # HTTPException is an OSError where a server answers
        reason = one_line(getattr(error, "reason", None) or error)
        raise FuseError(f"{where}: could not be fetched ({reason}); check the address") from error

"""Files that are written at once or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile


def write_at_once(path: Path, write: Callable[[Path], None]) -> None:
    """Let a function write a file, which has its name when it is whole.

    Raises:
        OSError: it cannot be written; whatever the function raises. No part of the file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: another process may be writing the same file
    with NamedTemporaryFile(
        dir=path.parent, prefix=f"{path.name}-", suffix=".partial", delete=False
    ) as file:
        partial = Path(file.name)
    try:
        write(partial)
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    """Return the process's mask of permissions, which temporary files do not follow."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Writing a file whole or not at all, once for all rooms."""

import os
import tempfile
from pathlib import Path

_MASK = os.umask(0o022)  # it can only be read by setting it, and not while threads make files
os.umask(_MASK)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, through a temporary file in the same folder; others may read it as usual."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(name, 0o666 & ~_MASK)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

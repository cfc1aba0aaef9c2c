"""Copy a file, or a folder's files, the plain way, and make it durable: read, write, fsync. The measure of all else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_CHUNK = 2**24


def durable_copy(source: Path, target: Path) -> None:
    """Copy `source` to `target` in chunks of 16 MiB; it is on the disk when this returns."""
    if source.is_dir():
        target.mkdir()
        for entry in sorted(source.iterdir()):
            durable_copy(entry, target / entry.name)
        return
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        buffer = bytearray(_CHUNK)
        while count := reader.readinto(buffer):
            writer.write(memoryview(buffer)[:count])
        os.fsync(writer.fileno())


if __name__ == "__main__":
    durable_copy(Path(sys.argv[1]), Path(sys.argv[2]))

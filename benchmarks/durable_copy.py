"""Copy a file the plain way, and make it durable: read, write, fsync. What a merge is measured against."""

from __future__ import annotations

import os
import sys

_CHUNK = 2**24


def durable_copy(source: str, target: str) -> None:
    """Copy `source` to `target` in chunks of 16 MiB; it is on the disk when this returns."""
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        buffer = bytearray(_CHUNK)
        while count := reader.readinto(buffer):
            writer.write(memoryview(buffer)[:count])
        os.fsync(writer.fileno())


if __name__ == "__main__":
    durable_copy(sys.argv[1], sys.argv[2])

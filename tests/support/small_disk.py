"""A command on a disk of a few pages: a file system of its own, in a namespace of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from commands import environment

__all__ = ["on_a_small_disk"]

_IN_NAMESPACE = ("unshare", "--map-root-user", "--mount")


def on_a_small_disk(
    folder: Path,
    script: str,
    *arguments: str | Path,
    kib: int = 16,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a script of bash in a folder in which `disk` is the disk; skip where no mounts are allowed.

    Args:
        folder: Where it runs; the script finds nothing of the disk there afterwards.
        script: In which `"$@"` is the command with its arguments.
        *arguments: The command and its arguments.
        kib: The size of the disk.
        env: Changes of the environment.
    """
    if subprocess.run([*_IN_NAMESPACE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no mounts, not even in a namespace of its own")
    (folder / "disk").mkdir(exist_ok=True)
    command: Sequence[str | Path] = [
        *_IN_NAMESPACE, "bash", "-c", f"mount -t tmpfs -o size={kib}k none disk && {{ {script}\n}}", "bash", *arguments
    ]  # fmt: skip
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment(env), capture_output=True, text=True, check=False
    )

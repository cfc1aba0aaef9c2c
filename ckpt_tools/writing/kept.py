"""What is known of a complete file of an output that is not published yet, for a run that takes it over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ckpt_tools.tensors.lazy import Statistics
from ckpt_tools.writing.atomic import Workspace
from ckpt_tools.writing.file_job import Measured

__all__ = ["Kept", "keep_facts", "load_kept"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A complete file.

    Attributes:
        size: Bytes.
        mtime_ns: Time of its last modification, in nanoseconds.
        measured: What was measured when it was written.
        digests: The digests, when it was complete, of tensors that it holds or holds a slice of, as far as all of their
            content had been seen by then.
    """

    size: int
    mtime_ns: int
    measured: Measured
    digests: Mapping[str, str] = field(default_factory=dict)


def load_kept(workspace: Workspace, name: str) -> Kept | None:
    """What is known of a file that a run before this one, of the same plan, completed.

    It was synced before its size and time were written down: a file that still has them holds what was written to it.

    Returns:
        None where there is none, or it was touched since.
    """
    try:
        found = json.loads(_facts_file(workspace, name).read_text())
        measured = {
            tensor: {place: Statistics(**one) for place, one in places.items()}
            for tensor, places in found["measured"].items()
        }
        kept = Kept(found["size"], found["mtime_ns"], measured, found["digests"])
        info = (workspace.content / name).stat()
        return kept if (info.st_size, info.st_mtime_ns) == (kept.size, kept.mtime_ns) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a crash of the machine lost it


def keep_facts(workspace: Workspace, name: str, kept: Kept) -> None:
    """Write down what is known of a file, before it is given its name."""
    _facts_file(workspace, name).write_text(json.dumps(asdict(kept)))


def _facts_file(workspace: Workspace, name: str) -> Path:
    return workspace.folder / (name.replace("/", "%2F") + ".statistics.json")

"""The manifest of an output: which program made it of which inputs, and the digest of each tensor that it holds.

It lies in an output that is a folder as `pet-manifest.json`, in a single `.safetensors` among its metadata, and beside
a single `X.ckpt` as `X.pet-manifest.json`. It has neither times nor paths, so that the same inputs give the same bytes,
and its length does not depend on the digests, so that it can stand in a plan before a byte is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_tools.formats.folder import MANIFEST_NAME
from ckpt_tools.formats.strict_json import MAX_JSON_BYTES
from ckpt_tools.tensors.digests import DIGEST_VERSION
from surgery.version import __version__

__all__ = [
    "MANIFEST_FORMAT",
    "MANIFEST_KEY",
    "MANIFEST_NAME",
    "Manifest",
    "ManifestInput",
    "ManifestTensor",
    "is_manifest",
    "printable_name",
]

MANIFEST_KEY = "pet_surgery.manifest"
"""Its key in the metadata of a single `.safetensors`."""

MANIFEST_FORMAT = "pet-manifest-1"
"""What a manifest says that it is."""

_UNKNOWN = "0" * 64


@dataclass(frozen=True, slots=True)
class ManifestInput:
    """What an output was made of.

    Attributes:
        role: `base`, `adapter`, `source` or `config`.
        name: The name of the file or folder.
        fingerprint: What tells its content from others: `pet-fp1:...` of a base, `blake3:...` of an adapter.
        scaling: Of an adapter: the factors in front of B @ A, each once.
        weight: Of an adapter: what these were multiplied with besides.
    """

    role: str
    name: str
    fingerprint: str = ""
    scaling: tuple[float, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ManifestTensor:
    """A tensor of the output.

    Attributes:
        name: Its name.
        dtype: The name of its element type.
        shape: The whole tensor's shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest, as far as it is known.

    Attributes:
        command: `merge`, `transform`, ...
        inputs: What went in.
        format: `ckpt` or `safetensors`.
        files: Names of the checkpoint files.
        tensors: What they hold.
        companions: Names of the small files beside them.
        has_digests: Whether digests are wanted.
        plan: SHA-256 of the plan; empty until it is known.
        digests: A tensor's name to its digest, as far as they are known.
        companion_digests: A companion's name to the BLAKE3 of its bytes.
    """

    command: str
    inputs: tuple[ManifestInput, ...]
    format: str
    files: tuple[str, ...]
    tensors: tuple[ManifestTensor, ...]
    companions: tuple[str, ...] = ()
    has_digests: bool = True
    plan: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    companion_digests: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as it is written; what is not known yet is zeros."""
        return {
            "format": MANIFEST_FORMAT,
            "tool": f"pet-surgery {__version__}",
            "command": self.command,
            "plan": f"sha256:{self.plan or _UNKNOWN}",
            "inputs": [
                {
                    "role": one.role,
                    "name": one.name,
                    **({"fingerprint": one.fingerprint} if one.fingerprint else {}),
                    **({"scaling": list(one.scaling)} if one.scaling else {}),
                    **({"weight": one.weight} if one.weight != 1 else {}),
                }
                for one in self.inputs
            ],
            "output": {"format": self.format, "files": list(self.files)},
            "digest": DIGEST_VERSION if self.has_digests else None,
            "tensors": {
                one.name: {"dtype": one.dtype, "shape": list(one.shape), "digest": self._known(self.digests, one.name)}
                for one in self.tensors
            },
            "companions": {name: self._known(self.companion_digests, name) for name in self.companions},
        }

    def to_text(self) -> str:
        """The same in one line, for metadata."""
        return json.dumps(self.to_json(), ensure_ascii=True, separators=(",", ":"))

    def to_bytes(self) -> bytes:
        """The same with a line for each tensor, for a file."""
        lines = []
        for key, value in self.to_json().items():
            if isinstance(value, dict) and key != "output":
                entries = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
                lines.append(f" {json.dumps(key)}: {{\n{entries}\n }}" if entries else f" {json.dumps(key)}: {{}}")
            else:
                lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    def _known(self, digests: Mapping[str, str], name: str) -> str | None:
        return digests.get(name, _UNKNOWN) if self.has_digests else None


def is_manifest(path: Path) -> bool:
    """Whether a file says that it is a manifest."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return False
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == MANIFEST_FORMAT


def printable_name(path: Path) -> str:
    """A file's name, which may be any bytes, as text that a header can hold."""
    name = path.resolve().name if path.name in ("", "..") else path.name
    return os.fsencode(name).decode("utf-8", "backslashreplace")

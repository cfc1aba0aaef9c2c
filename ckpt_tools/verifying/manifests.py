"""Reading the manifest of an output, wherever it lies; a manifest is a file that nobody vouches for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.strict_json import MAX_JSON_BYTES, parse_json
from ckpt_tools.tensors.digests import DIGEST_VERSION
from ckpt_tools.tensors.sources import open_source, read_exactly
from ckpt_tools.writing.manifest import MANIFEST_FORMAT, MANIFEST_KEY, MANIFEST_NAME, ManifestTensor
from surgery.errors import CorruptInputError, InputMissingError, Problem

__all__ = ["ReadManifest", "read_manifest"]

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ReadManifest:
    """What a manifest says.

    Attributes:
        where: The file that holds it.
        tool: The program that made the output, and its version.
        command: `merge`, `transform`, ...
        tensors: What the output holds, by name.
        digests: Their digests by name; None where the manifest has none.
        inputs: What went in, as `base base.ckpt`.
        companions: Name of a small file to the BLAKE3 of its bytes; None where the manifest has no digests.
        plan: The digest of the plan, as `sha256:...`.
    """

    where: Path
    tool: str
    command: str
    tensors: Mapping[str, ManifestTensor]
    digests: Mapping[str, str] | None
    inputs: tuple[str, ...]
    companions: Mapping[str, str | None]
    plan: str = ""


def read_manifest(output: Path) -> ReadManifest:
    """The manifest of an output.

    Args:
        output: A folder, a single `.safetensors` or a single `.ckpt`.

    Raises:
        InputMissingError: It has none, or is not there.
        CorruptInputError: It is no manifest, or one of another version.
    """
    where, data = _find(output)
    found = parse_json(data, str(where))
    if not isinstance(found, dict) or found.get("format") != MANIFEST_FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        remedy = "Take a version of pet-surgery that knows it" if isinstance(version, str) else ""
        raise CorruptInputError(Problem(str(where), f"format {version!r}", MANIFEST_FORMAT, remedy))
    try:
        return _parse(where, found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptInputError(Problem(str(where), f"a broken manifest: {detail}", "a manifest")) from error


def _find(output: Path) -> tuple[Path, bytes | bytearray]:
    remedy = "pet-verify BASE ADAPTER MERGED proves a merge that has none"
    if output.is_dir():
        path = output / MANIFEST_NAME
    else:
        checkpoint = open_checkpoint(output)  # which says what is wrong with a file that is none
        if checkpoint.format == "safetensors":
            text = checkpoint.metadata.get(MANIFEST_KEY)
            if text is None:
                found = f"no {MANIFEST_KEY} in its metadata"
                raise InputMissingError(Problem(str(output), found, "a file that pet-surgery wrote", remedy))
            return output, text.encode("utf-8")
        path = output.with_name(f"{output.stem}.{MANIFEST_NAME}")
    try:
        source = open_source(path)
    except InputMissingError as error:
        found = error.problems[0].found
        raise InputMissingError(Problem(str(path), found, "the manifest of an output", remedy)) from error
    if source.size > MAX_JSON_BYTES:
        raise CorruptInputError(
            Problem(str(path), f"a manifest of {source.size:,} bytes", f"at most {MAX_JSON_BYTES:,}")
        )
    return path, read_exactly(source, 0, source.size)


def _parse(where: Path, found: Mapping[str, Any]) -> ReadManifest:
    has_digests = found["digest"] is not None
    if found["digest"] not in (None, DIGEST_VERSION):
        raise ValueError(f"digests of kind {found['digest']!r}, of which only {DIGEST_VERSION} is known")
    tensors, digests = {}, {}
    for name, entry in found["tensors"].items():
        shape = entry["shape"]
        if not isinstance(entry["dtype"], str) or not isinstance(shape, list) or not all(map(_is_size, shape)):
            raise ValueError(f"type and shape of {name!r}")
        tensors[name] = ManifestTensor(name, entry["dtype"], tuple(shape))
        if has_digests:
            digests[name] = _digest(name, entry["digest"])
    companions = {name: _digest(name, digest) if has_digests else None for name, digest in found["companions"].items()}
    inputs = tuple(f"{one['role']} {one['name']}" for one in found["inputs"])
    tool, command = found["tool"], found["command"]
    if not isinstance(tool, str) or not isinstance(command, str):
        raise TypeError("tool and command are no texts")
    plan = str(found.get("plan", ""))
    return ReadManifest(where, tool, command, tensors, digests if has_digests else None, inputs, companions, plan)


def _digest(name: str, digest: object) -> str:
    if not isinstance(digest, str) or not _HEX.fullmatch(digest):
        raise ValueError(f"the digest of {name!r} is not 64 hexadecimal digits")
    return digest


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**64

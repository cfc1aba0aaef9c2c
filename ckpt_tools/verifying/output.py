"""`verify_output`: whether an output is what its manifest says, and who signed it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from blake3 import blake3

from ckpt_tools.distributed import compare_replicas, open_whole
from ckpt_tools.formats import Checkpoint
from ckpt_tools.layout import read_strategy
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.reports import ManifestReport
from ckpt_tools.sizes import given_bytes
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.sources import check_unchanged
from ckpt_tools.verifying.manifests import ReadManifest, read_manifest
from ckpt_tools.verifying.signatures import check_signature, sign_output, signature_path
from ckpt_tools.writing.digests import digest_tensors
from ckpt_tools.writing.leftovers import check_settled
from ckpt_tools.writing.manifest import MANIFEST_NAME
from ckpt_tools.writing.memory import make_budget
from surgery.errors import InputChangedError, Problem, UsageError, VerificationError

__all__ = ["verify_output"]

PathLike = str | os.PathLike[str]


def verify_output(
    output: PathLike,
    *,
    src_strategy: PathLike | None = None,
    step: str | None = None,
    replicated: Sequence[str] = (),
    public_key: PathLike | None = None,
    sign_key: PathLike | None = None,
    signature: PathLike | None = None,
    threads: int | None = None,
    max_memory: int | str | None = None,
    progress: Progress = SILENT,
) -> ManifestReport:
    """Prove that an output still is what its manifest says: all tensors, their types, shapes and every byte of them.

    Args:
        output: What a command of pet-surgery wrote: a file or a folder.
        src_strategy: How its rank folders are cut: the strategy that they were written for.
        step: Which step of rank folders, or which iteration; by default the latest.
        replicated: Patterns of names that the strategy may lack.
        public_key: A PEM file with the elliptic-curve key that has to have signed it.
        sign_key: A PEM file with a private key: what was proven is signed with it.
        signature: The file of the detached signature; by default `<output>.sig`.
        threads: By default one for each core.
        max_memory: Bytes, or a size such as `1GiB`: anonymous memory at most.
        progress: What is told how far it is.

    Raises:
        VerificationError: It is not what the manifest says, or was not signed so; all that differs at once.
        InputMissingError: It is not there, or has no manifest, or there is no signature.
        CorruptInputError: The output, its manifest or its signature breaks its format.
        MismatchError: Ranks' files do not fit together.
        MissingExtraError: Signatures need `model-signing`, which is not installed.
        OutputExistsError: The signature to be written is there already.
        UsageError: Arguments contradict each other.
    """
    started = time.monotonic()
    if public_key is not None and sign_key is not None:
        raise UsageError(Problem("--public-key and --sign-key", "both", "one of the two"))
    if signature is not None and public_key is None and sign_key is None:
        raise UsageError(Problem("--signature", str(signature), "with --public-key or --sign-key"))
    path = Path(output)
    place = signature_path(path, None if signature is None else Path(signature))
    budget = make_budget(threads, given_bytes(max_memory))
    manifest = read_manifest(path)
    if public_key is not None:
        check_signature(path, Path(public_key), place)
    strategy = None if src_strategy is None else read_strategy(src_strategy)
    opened = open_whole(path, strategy, step=step, replicated=replicated)
    tensors = opened.base.tensors
    problems = [*_header_problems(path, manifest, tensors), *compare_replicas(opened.whole.replicas, progress)]
    compared: Mapping[str, LazyTensor] = {}
    if manifest.digests is not None:
        compared = {name: tensor for name, tensor in tensors.items() if name in manifest.digests}
        found = digest_tensors(compared, budget, progress, "verifying")
        problems += [
            Problem(
                name,
                f"other content, with the digest {digest[:12]}...",
                f"what was written, with {manifest.digests[name][:12]}...",
            )
            for name, digest in found.items()
            if digest != manifest.digests[name]
        ]
    problems += _companion_problems(path, manifest)
    if problems:
        _check_same_run(path, manifest, opened.base)
        raise VerificationError(problems)
    if sign_key is not None:
        sign_output(path, Path(sign_key), place)
    return ManifestReport(
        warnings=(*opened.base.warnings, *_warnings(path, manifest)),
        seconds=time.monotonic() - started,
        output=str(path),
        manifest=str(manifest.where),
        tool=manifest.tool,
        made_by=manifest.command,
        tensors=len(tensors),
        companions=len(manifest.companions),
        bytes_read=sum(tensor.nbytes for tensor in compared.values()),
        has_digests=manifest.digests is not None,
        signature=None if public_key is None and sign_key is None else str(place),
    )


def _check_same_run(path: Path, manifest: ReadManifest, read: Checkpoint) -> None:
    """What differs says nothing where the manifest beside a file is of a run before or behind the file's own.

    Raises:
        InputChangedError: It may be.
    """
    if manifest.where == path or path.is_dir():
        return
    check_settled(path, manifest.where)
    for source in read.sources:
        check_unchanged(source)
    if read_manifest(path) != manifest:
        found = "another manifest than at first: a run has replaced it and its file meanwhile"
        raise InputChangedError(Problem(str(manifest.where), found, "both of one run", "Verify it again"))


def _header_problems(path: Path, manifest: ReadManifest, tensors: Mapping[str, LazyTensor]) -> Iterator[Problem]:
    for name, said in manifest.tensors.items():
        tensor = tensors.get(name)
        if tensor is None:
            yield Problem(str(path), f"no tensor {name}", "it, as the manifest says")
        elif (tensor.dtype.name, tensor.shape) != (said.dtype, said.shape):
            yield Problem(name, f"{tensor.dtype.name} {tensor.shape}", f"{said.dtype} {said.shape}")
    for name in tensors:
        if name not in manifest.tensors:
            yield Problem(str(path), f"a tensor {name}", "no other than those of the manifest")


def _companion_problems(path: Path, manifest: ReadManifest) -> Iterator[Problem]:
    for name, digest in manifest.companions.items():
        file = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            yield Problem(str(manifest.where), f"the file name {name!r}", "a name inside the folder")
        elif not file.is_file():
            yield Problem(str(file), "no such file", "it, as the manifest says")
        elif digest is not None and blake3().update_mmap(file).hexdigest() != digest:
            yield Problem(str(file), "other content", "what was written, as the manifest says")


def _warnings(path: Path, manifest: ReadManifest) -> Iterator[str]:
    if manifest.digests is None:
        yield f"{manifest.where}: it was written with --no-digest: names, types and shapes were compared, contents not"
    if path.is_dir():
        known = {*manifest.companions, MANIFEST_NAME}
        others = sorted(
            entry.name
            for entry in path.iterdir()
            if entry.is_file() and entry.name not in known and entry.suffix not in (".safetensors", ".ckpt")
        )
        if others:
            yield f"{path}: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''} came after the manifest"

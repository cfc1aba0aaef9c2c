"""An iteration of MindFormers' Checkpoint 2.0, read into whole tensors and the chunks that they are made of.

`folder` says what lies where. Only headers are read. What `metadata.json` says must agree with what the files
hold: every chunk is where it should be, of the type and shape that it should have, and the chunks cover each tensor
exactly once; its layout and its offsets put each rank's chunk at the same place. A single rank writes no
`metadata.json`: its tensors are whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.folder import WEIGHT_SUFFIXES, Listing, list_folder, locate, natural_key
from ckpt_tools.formats.iteration.folder import (
    COMMON_FILE,
    METADATA_FILE,
    WeightsFileName,
    find_iteration,
    iteration_number,
)
from ckpt_tools.formats.iteration.join import ChunkJoiner, kind_of
from ckpt_tools.formats.iteration.metadata import IterationMetadata, read_iteration_metadata
from ckpt_tools.formats.iteration.model import Chunk, GlobalTensor, Iteration
from ckpt_tools.formats.iteration.problems import IterationProblems
from ckpt_tools.formats.model import Checkpoint
from ckpt_tools.formats.recognise import read_file
from ckpt_tools.formats.strict_json import parse_json
from ckpt_tools.tensors.lazy import full_region
from ckpt_tools.tensors.sources import Source, open_source, read_exactly
from surgery.errors import CorruptInputError, InputMissingError, PetSurgeryError, Problem

__all__ = ["read_iteration"]

_MAX_SHOWN = 4
_MAX_COMMON_BYTES = 4 * 2**20  # MindFormers writes some 200


def read_iteration(path: str | os.PathLike[str], number: int | None = None) -> Iteration:
    """Read the headers of an iteration, and prove that its files are the tensors that `metadata.json` describes.

    Args:
        path: The iteration's folder, or the parent of several: see `find_iteration`.
        number: Which iteration it has to be.

    Raises:
        InputMissingError: The folder, or a file that is named, is not there.
        CorruptInputError: A file breaks its format.
        MismatchError: `metadata.json` and the files disagree, or a tensor's chunks do not cover it exactly once.
    """
    folder = find_iteration(path, number)
    listing = list_folder(folder)
    problems = IterationProblems()
    metadata = _read_metadata(listing, folder)
    names = _names_of(metadata, listing, folder, problems)
    files = _read_files(listing, names, metadata, problems)
    common, common_sources = _read_common(listing, problems)
    if metadata is None:
        tensors, unlisted = _whole_tensors(files, folder, problems), dict[str, tuple[Chunk, ...]]()
    else:
        joiner = ChunkJoiner(metadata, files, problems)
        tensors, unlisted = joiner.join(), joiner.unlisted()
    problems.raise_if_any()
    warnings = [warning for file in files.values() for warning in file.warnings]
    if not common_sources:
        warnings.append(f"{folder}: it has no {COMMON_FILE}, which holds the training's counters")
    if unlisted:
        some = quote_name(next(iter(unlisted)))
        warnings.append(f"{folder / METADATA_FILE}: {len(unlisted)} tensors of the files are not in it, such as {some}")
    sources = [source for file in files.values() for source in file.sources] + common_sources
    if metadata is not None:
        sources.append(metadata.source)
    return Iteration(
        path=folder,
        number=iteration_number(folder),
        tensors=tensors,
        common=common,
        files=tuple(files),
        prefix=_common_prefix(files),
        unlisted=unlisted,
        sources=tuple(sources),
        warnings=tuple(warnings),
    )


def _read_metadata(listing: Listing, folder: Path) -> IterationMetadata | None:
    if METADATA_FILE not in listing.files:
        return None
    return read_iteration_metadata(locate(listing.root, METADATA_FILE, str(folder)))


def _names_of(
    metadata: IterationMetadata | None, listing: Listing, folder: Path, problems: IterationProblems
) -> list[str]:
    """The names of the weights files, in natural order."""
    present = listing.with_suffix(*WEIGHT_SUFFIXES)
    if metadata is not None:
        named = {holder.file for holders in metadata.holders.values() for holder in holders}
        for name in present:
            if name not in named:
                problems.add(str(folder / name), f"a file that {METADATA_FILE} does not name", remedy="Move it away")
        return sorted(named, key=natural_key)
    parts = [WeightsFileName.parse(name) for name in present]
    if any(part is None or part.total != 1 for part in parts):
        problems.add_error(
            InputMissingError(
                Problem(
                    str(folder / METADATA_FILE),
                    f"no such file beside {', '.join(present[:_MAX_SHOWN])}",
                    "what says how the ranks' slices make up the tensors",
                    "Save again: saving ended before it was written",
                )
            )
        )
    return present


def _read_files(
    listing: Listing, names: Iterable[str], metadata: IterationMetadata | None, problems: IterationProblems
) -> dict[str, Checkpoint]:
    """The files' headers; those of files that cannot be read are left out."""
    named_by = "its folder" if metadata is None else str(metadata.path)
    files = {}
    for name in names:
        try:
            files[name] = read_file(locate(listing.root, name, named_by))
        except PetSurgeryError as error:  # noqa: PERF203 - all of them are told at once
            problems.add_error(error)
    return files


def _read_common(listing: Listing, problems: IterationProblems) -> tuple[Mapping[str, object], list[Source]]:
    if COMMON_FILE not in listing.files:
        return {}, []
    try:
        source = open_source(locate(listing.root, COMMON_FILE, "its folder"))
        if source.size > _MAX_COMMON_BYTES:
            found, expected = f"{source.size:,} bytes", f"counters of at most {_MAX_COMMON_BYTES:,}"
            raise CorruptInputError(Problem(source.path, found, expected))
        document = parse_json(read_exactly(source, 0, source.size), source.path)
        if not isinstance(document, dict):
            raise CorruptInputError(Problem(source.path, "something else", "a JSON object"))
    except PetSurgeryError as error:
        problems.add_error(error)
        return {}, []
    return document, [source]


def _whole_tensors(
    files: Mapping[str, Checkpoint], folder: Path, problems: IterationProblems
) -> dict[str, GlobalTensor]:
    """The tensors of a single rank's files, each of which is whole."""
    tensors: dict[str, GlobalTensor] = {}
    for file, checkpoint in files.items():
        for name, tensor in checkpoint.tensors.items():
            if name in tensors:
                both = f"it in {tensors[name].chunks[0].file} and in {file}"
                problems.add(f"{folder}, tensor {quote_name(name)}", both, "it in one file")
            region = full_region(tensor.shape)
            edges = tuple((0, size) for size in tensor.shape)
            chunk = Chunk(region, tensor, file, 0)
            tensors[name] = GlobalTensor(name, tensor.dtype, tensor.shape, edges, (chunk,), (), kind_of(file))
    return tensors


def _common_prefix(files: Iterable[str]) -> str | None:
    prefixes = {parts.prefix for file in files if (parts := WeightsFileName.parse(file))}
    return prefixes.pop() if len(prefixes) == 1 else None

"""Execute a plan: have its files filled, add what comes with them, and publish the whole at once."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from ckpt_tools.formats.ckpt import check_read_crc
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.tensors.crc import CrcPieces
from ckpt_tools.tensors.lazy import Statistics
from ckpt_tools.tensors.sources import Source, check_unchanged, close_sources, watch_reads
from ckpt_tools.writing.atomic import Workspace, sync_folder, writing_failed
from ckpt_tools.writing.beside import placed_beside
from ckpt_tools.writing.claims import claim_output, claim_part
from ckpt_tools.writing.copying import Copy, copy_range, write_at
from ckpt_tools.writing.digests import Digests, digest_tensors, written_tensors
from ckpt_tools.writing.executors import Executor, connect_executor
from ckpt_tools.writing.file_job import Measured, add_up
from ckpt_tools.writing.interrupts import HeldInterrupts, hold_interrupts
from ckpt_tools.writing.kept import load_kept
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputBytes, OutputCopy, OutputFile, OutputManifest, Plan
from surgery.errors import PetSurgeryError, Problem, ResourceError

__all__ = ["Outcome", "execute"]


@dataclass(slots=True)
class Outcome:
    """What an execution did.

    Attributes:
        measured: What was measured of computed tensors.
        bytes_written: Bytes that this run wrote.
        written: The checkpoint files among them.
        resumed: Files that a killed run of the same plan had completed, and this one took over.
        checked: Paths of inputs that have a CRC-32 and were read whole: it is theirs.
        content: The folder in which the written files wait to be published.
        is_published: Whether the output is in its place, whatever happened then.
    """

    measured: Measured = field(default_factory=dict)
    bytes_written: int = 0
    written: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    content: Path | None = None
    is_published: bool = False

    @property
    def statistics(self) -> dict[str, Statistics]:
        """What was measured, by the name of the output tensor; computed tensors only."""
        return add_up(self.measured)

    def add(self, measured: Measured) -> None:
        """Add what was measured when a file was written."""
        for name, places in measured.items():
            self.measured.setdefault(name, {}).update(places)


def execute(
    plan: Plan,
    *,
    part: Plan | None = None,
    beside: Mapping[Path, bytes] | None = None,
    force: bool = False,
    budget: Budget | None = None,
    progress: Progress = SILENT,
    crc: Mapping[Source, int] | None = None,
    approve: Callable[[Outcome], None] = lambda outcome: None,
    executor: str = "local",
    resume: bool = True,
) -> Outcome:
    """Write a plan's output: all of it, or nothing.

    Args:
        plan: What to write.
        part: Some of its files: they are completed, and kept for a run of the whole plan, which takes them over and
            publishes the output. Runs of parts may work at the same time, also on several machines.
        beside: Small files that appear beside the output, by their paths; where they may not, `check_beside` said so.
        force: Replace an existing output.
        budget: Threads and memory; by default a thread for each core.
        progress: What is told how far it is.
        crc: CRC-32s of inputs; those that are read whole anyway are checked on the way.
        approve: Called when everything is written and before it is published; raises to call it off.
        executor: Who fills the files: `local`, `ray` or `ray://HOST:PORT`. The bytes are the same.
        resume: Take over what a killed run of the same plan, maybe on another machine, completed.

    Raises:
        OutputExistsError: The output exists and `force` is not set, another run writes it, or parts of another plan
            were completed for it.
        ResourceError: The disk is full, or an I/O call failed; a cluster does not answer, or keeps losing workers.
        InputChangedError: An input was modified meanwhile.
        CorruptInputError: An input that was read whole has another CRC-32.
        KeyboardInterrupt: The run was interrupted; its argument says whether the output was published.
    """
    budget = budget or Budget()
    outcome = Outcome()
    claim_it = claim_output if part is None else claim_part
    digest = plan.digest() if resume else secrets.token_hex(32)
    claim = claim_it(plan.output, digest, is_folder=plan.is_folder, force=force)
    filler = connect_executor(executor)  # which may take a while, and nothing is there yet that would have to go
    identified = plan.with_identity()
    with hold_interrupts() as held, closing(filler), claim as workspace:
        outcome.content = workspace.content
        if part is not None:
            held.consequence = "what was complete is kept"
        try:
            with watch_reads(crc or {}) as watched:
                digests = _write_entries(part or identified, workspace, filler, budget, progress, outcome, held)
            try:
                _check_inputs(part or plan, crc or {}, watched, outcome)
                approve(outcome)
            except PetSurgeryError:
                for name in outcome.written:
                    workspace.discard(name)
                raise
        except OSError as error:
            raise writing_failed(plan.output, error) from error
        finally:
            progress.finish()
            close_sources()
        held.raise_pending()
        if part is not None:
            try:
                workspace.sync_all()
            except OSError as error:
                raise writing_failed(plan.output, error) from error
            return outcome
        files = dict(beside or {})
        if identified.beside is not None:
            manifest = replace(identified.beside.manifest, digests=digests)
            files[plan.output.parent / identified.beside.name] = manifest.to_bytes()
        _publish(workspace, files, outcome)
        held.consequence = "the output is complete"
    return outcome


def _publish(workspace: Workspace, files: Mapping[Path, bytes], outcome: Outcome) -> None:
    try:
        with placed_beside(files, workspace):
            workspace.put_in_place()
        outcome.is_published = True
    except OSError as error:
        raise writing_failed(workspace.output, error) from error
    try:
        sync_folder(workspace.output.parent)
        if workspace.kept_mark.exists():
            sync_folder(workspace.folder)  # which a loss of power would else bring back with all its content
    except OSError as error:
        found = (
            f"the output is in its place, but may not outlive a loss of power: {(error.strerror or str(error)).lower()}"
        )
        raise ResourceError(Problem(str(workspace.output), found, remedy="Check the disk, and run again")) from error


def _check_inputs(plan: Plan, crc: Mapping[Source, int], watched: Mapping[Source, CrcPieces], outcome: Outcome) -> None:
    for source, expected in crc.items():
        if check_read_crc(source, expected, watched[source]):
            outcome.checked.append(source.path)
    for source in plan.sources():
        check_unchanged(source)


def _write_entries(
    plan: Plan,
    workspace: Workspace,
    filler: Executor,
    budget: Budget,
    progress: Progress,
    outcome: Outcome,
    held: HeldInterrupts,
) -> Mapping[str, str]:
    """Write a plan's files and what comes with them; the digests of the tensors, where its manifest wants them."""
    manifest = plan.manifest
    digests = Digests(wanted=manifest is not None and manifest.has_digests)
    kept = {file.name: known for file in plan.files() if (known := load_kept(workspace, file.name)) is not None}
    measured = {name: known.measured for name, known in kept.items()}
    for known in kept.values():
        digests.add_complete(known.digests)
    files = [file for file in plan.files() if file.name not in kept]
    progress.start(sum(file.nbytes() for file in files), "writing")
    for written in filler.write(files, workspace, budget, progress, digests, held) if files else ():
        measured[written.name] = written.measured
        outcome.bytes_written += written.size
        outcome.written.append(written.name)
    found = digests.complete()
    if digests.wanted and (plan.is_folder or plan.beside is not None or kept):
        found |= _digest_unseen(plan, workspace, found, budget, progress, held)
    for file in plan.files():
        outcome.add(measured[file.name])  # in the plan's order, whichever was done first
        if file.name not in outcome.written:
            outcome.resumed.append(file.name)
    companions: dict[str, str] = {}
    for entry in plan.entries:
        if isinstance(entry, OutputFile):
            continue
        held.raise_pending()
        if isinstance(entry, OutputManifest):
            manifest = replace(entry.manifest, digests=found, companion_digests=companions)
            outcome.bytes_written += _write_companion(workspace, OutputBytes(entry.name, manifest.to_bytes()))
            continue
        outcome.bytes_written += _write_companion(workspace, entry)
        if digests.wanted:
            companions[entry.name] = blake3().update_mmap(workspace.content / entry.name).hexdigest()
    return found


def _digest_unseen(
    plan: Plan,
    workspace: Workspace,
    known: Mapping[str, str],
    budget: Budget,
    progress: Progress,
    held: HeldInterrupts,
) -> dict[str, str]:
    """Digests of what other runs wrote, or other machines in slices: it is read again."""
    unseen = {name for name, _ in plan.tensors() if name not in known}
    if not unseen:
        return {}
    held.raise_pending()
    return digest_tensors(written_tensors(plan.files(), unseen, workspace.content), budget, progress)


def _write_companion(workspace: Workspace, entry: OutputBytes | OutputCopy) -> int:
    part = workspace.new_part()
    with part.open("xb", buffering=0) as file:
        if isinstance(entry, OutputBytes):
            size = len(entry.data)
            write_at(file.fileno(), memoryview(entry.data), 0)
        else:
            size = entry.source.size
            copy_range(Copy(entry.source, 0, 0, size), file.fileno())
        os.fsync(file.fileno())
    workspace.complete(part, entry.name)
    return size

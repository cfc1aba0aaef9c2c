"""What the pages of all commands that write a checkpoint have in common."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_tools.pages.blocks import Block, Cell, Check, Column, Fact, Names, Paragraph, Section, Table
from ckpt_tools.pages.text import count_of, listed, number_cell
from ckpt_tools.reports import DroppedTensor, OutputReport
from ckpt_tools.sizes import format_size

__all__ = ["dropped_blocks", "outcome_check", "title_of", "volume_section"]


def title_of(report: OutputReport, done: str, planned: str) -> str:
    """The page's heading."""
    return f"{planned if report.dry_run else done} {report.output}"


def outcome_check(report: OutputReport, ranks: str | None = None) -> Check:
    """Whether the output is there."""
    if report.dry_run:
        return Check("Dry run", "everything was checked, and nothing was written", is_fine=False)
    if ranks is not None:
        text = f"ranks {ranks} alone are written; the same command without --ranks publishes the output"
        return Check("Part of the output", text, is_fine=False)
    return Check("Output", f"complete: {count_of(len(report.files), 'file')}, {format_size(report.bytes_written)}")


def volume_section(report: OutputReport, *others: Fact) -> Section:
    """What was read, written and needed, and the output's files."""
    rows = [
        ("Read", format_size(report.bytes_read)),
        ("Written", f"{format_size(report.bytes_written)}, {report.format}"),
        ("Memory expected at most", format_size(report.peak_memory_bytes)),
        ("Free disk before", format_size(report.free_disk_bytes)),
        *((fact.label, fact.text) for fact in others),
    ]
    if not report.dry_run:
        rate = format_size(round(report.bytes_written / max(report.seconds, 1e-9)))
        rows.insert(2, ("Time", f"{report.seconds:.2f} s ({rate}/s)"))
    if report.resumed:
        rows.append(("Taken over of earlier runs", count_of(len(report.resumed), "file")))
    columns = (Column("What"), Column("How much"))
    table = Table("volume-table", "Volumes", columns, tuple((Cell(label), Cell(text)) for label, text in rows))
    return Section("volume", "Volumes and files", (table, Names("Files of the output", report.files)))


def dropped_blocks(dropped: Sequence[DroppedTensor]) -> tuple[Block, ...]:
    """What of the inputs is not in the output: how many for each reason, and all names."""
    if not dropped:
        return (Paragraph("Nothing: every tensor of the inputs is accounted for."),)
    by_reason: dict[str, list[DroppedTensor]] = {}
    for entry in dropped:
        by_reason.setdefault(entry.reason, []).append(entry)
    columns = (Column("Reason"), Column("Tensors", is_number=True), Column("Such as"))
    rows = tuple(
        (Cell(reason), number_cell(len(entries), str(len(entries))), Cell(listed([entry.name for entry in entries])))
        for reason, entries in by_reason.items()
    )
    summary = Table("dropped-reasons", "What was dropped, by reason", columns, rows)
    names = tuple(
        Names(f"{reason}: all {len(entries)}", tuple(f"{entry.name} ({entry.source})" for entry in entries))
        for reason, entries in by_reason.items()
    )
    return (summary, *names)

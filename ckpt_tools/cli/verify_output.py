"""pet-verify OUT: whether an output is what its manifest says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckpt_tools.cli.common import given_options, make_progress, print_report, printable
from ckpt_tools.reports import ManifestReport, Report
from ckpt_tools.sizes import format_size
from surgery.errors import Problem, UsageError

__all__ = ["SIGNATURES", "check_output", "refuse_signatures", "summarise"]

SIGNATURES = ("public_key", "sign_key", "signature")
"""Parameters that are for a single path."""

_TAKEN = ("src_strategy", "step", "replicated", "threads", "max_memory", *SIGNATURES)
_OF_THE_COMMAND = ("paths", "html", "force", "as_json", "quiet")


def check_output(
    output: str, options: Mapping[str, Any], write_page: Callable[[Report], None], *, as_json: bool, quiet: bool
) -> None:
    """Compare an output with its manifest.

    Raises:
        UsageError: An option was given that is for the proof of a merge.
    """
    from ckpt_tools.verifying import verify_output

    others = [option for name, option in given_options().items() if name not in (*_TAKEN, *_OF_THE_COMMAND)]
    if others:
        raise UsageError(
            Problem(
                ", ".join(others),
                "one path, which is compared with its manifest",
                "BASE, ADAPTER... and MERGED",
                "Leave it out, or name all of them",
            )
        )
    taken = {name: options[name] for name in _TAKEN}
    report = verify_output(output, **taken, progress=make_progress(quiet))
    write_page(report)
    print_report(report, summarise, as_json=as_json, quiet=quiet)


def refuse_signatures() -> None:
    """Refuse options of signatures where a merge is proved.

    Raises:
        UsageError: One was given.
    """
    found = [option for name, option in given_options().items() if name in SIGNATURES]
    if found:
        remedy = "Prove the merge first, then call pet-verify MERGED with it"
        raise UsageError(Problem(", ".join(found), "several paths", "the output alone", remedy))


def summarise(report: ManifestReport) -> str:
    """What was compared."""
    lines = [f"verified {report.output}: it is as {report.tool} wrote it"]
    contents = f"{format_size(report.bytes_read)} of contents" if report.has_digests else "without their contents"
    lines.append(f"  tensors    {report.tensors}, {contents}")
    if report.companions:
        lines.append(f"  files      {report.companions} others")
    lines.append(f"  manifest   {report.manifest}, of a {report.made_by}")
    if report.signature is not None:
        lines.append(f"  signature  {report.signature}")
    return "\n".join(map(printable, lines))

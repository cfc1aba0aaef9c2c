"""Merge an adapter and release the result only if its report stands a few checks.

    python -m examples.release base.ckpt lora.ckpt --alpha 16 -o release.safetensors

Exit codes are those of pet-merge, and 6 where a check fails: the candidate then stays where it can be looked at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from ckpt_tools import MergeReport, merge
from surgery.errors import OutputExistsError, PetSurgeryError, Problem

_CHECK_FAILED = 6


def main(arguments: list[str] | None = None) -> int:
    """Merge, check, publish; returns the exit code."""
    options = _parser().parse_args(arguments)
    output: Path = options.output
    candidate = output.with_name(f"candidate-{output.name}")
    try:
        if output.exists():
            raise OutputExistsError(Problem(str(output), "it exists already", "a free path"))
        report = merge(options.base, *options.adapters, output=candidate, alpha=options.alpha, config=options.config)
    except PetSurgeryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    failures = list(failed_checks(report, options.max_unchanged, options.min_delta, options.max_delta))
    if failures:
        print(*failures, f"not released: {candidate}", sep="\n", file=sys.stderr)
        return _CHECK_FAILED
    manifest, beside = (path.with_suffix(".pet-manifest.json") for path in (candidate, output))
    if manifest.exists():  # a .ckpt has it beside itself, every other output has it inside
        manifest.rename(beside)
    candidate.rename(output)
    Path(f"{output}.report.json").write_text(report.to_json() + "\n", encoding="utf-8")
    print(f"released {output}, {report.base_fingerprint}")
    return 0


def failed_checks(report: MergeReport, max_unchanged: float, min_delta: float, max_delta: float) -> Iterator[str]:
    """A sentence for each thing in a report that speaks against a release.

    Args:
        report: What the merge did.
        max_unchanged: Share of a weight's elements, 0 to 1, that rounding may leave unchanged.
        min_delta: The least norm of an update, as a share of its weight's norm.
        max_delta: The largest.
    """
    yield from report.warnings
    for weight in report.weights:
        if weight.unchanged_share is not None and weight.unchanged_share > max_unchanged:
            yield f"{weight.name}: rounding left {weight.unchanged_share:.1%} unchanged, more than {max_unchanged:.1%}"
        if weight.relative_delta is not None and not min_delta <= weight.relative_delta <= max_delta:
            yield f"{weight.name}: relative delta {weight.relative_delta:.2g} is not in {min_delta:g} to {max_delta:g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("adapters", nargs="*", metavar="adapter")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--alpha", type=float)
    parser.add_argument("--config")
    parser.add_argument("--max-unchanged", type=float, default=0.9, metavar="SHARE")
    parser.add_argument("--min-delta", type=float, default=1e-4, metavar="SHARE")
    parser.add_argument("--max-delta", type=float, default=0.5, metavar="SHARE")
    return parser


if __name__ == "__main__":
    sys.exit(main())

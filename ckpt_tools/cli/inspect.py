"""pet-inspect: say what is in a checkpoint, and what differs between two."""

from __future__ import annotations

from typing import Any

import click

from ckpt_tools.cli.common import HELP, INPUT, PATH, make_progress, print_report, run
from ckpt_tools.cli.page import page_option, page_writer
from surgery.errors import MismatchError, Problem, UsageError, VerificationError
from surgery.version import __version__

__all__ = ["inspect_command", "main"]


@click.command("pet-inspect", context_settings=HELP)
@click.argument("path", type=INPUT)
@click.argument("other", type=INPUT, required=False)
@click.option("--all", "--full", "list_all", is_flag=True, help="A line for every tensor, not for alike layers.")
@click.option("--filter", "filters", multiple=True, metavar="PATTERN", help="Only tensors whose names match.")
@click.option(
    "--spectra", is_flag=True, help="Of each adapted layer the singular values of scaling * B @ A, from its A and B."
)
@click.option(
    "--config",
    type=PATH,
    metavar="FILE",
    help="A run's YAML or an adapter_config.json with the alpha.  [default: found beside PATH]",
)
@click.option(
    "--src-strategy",
    "--strategy",
    type=PATH,
    metavar="FILE|DIR",
    help="How PATH's rank folders are cut: whole tensors.",
)
@click.option("--other-strategy", type=PATH, metavar="FILE|DIR", help="How OTHER's rank folders are cut.")
@click.option(
    "--step",
    metavar="STEP",
    help="Which step of PATH: 9_1 of ranks' files, 120 of Checkpoint 2.0.  [default: the latest]",
)
@click.option("--other-step", metavar="STEP", help="Which step of OTHER.  [default: the latest]")
@click.option(
    "--replicated", multiple=True, metavar="PATTERN", help="Tensors that strategies lack as every rank has all of them."
)
@click.option(
    "--names",
    type=PATH,
    default="keep",
    show_default=True,
    metavar="keep|hf|mindformers|FILE.json",
    help="Names to compare under; a file has PATH's names and OTHER's.",
)
@click.option("--exit-code", is_flag=True, help="Exit with 6 where PATH and OTHER differ.")
@page_option
@click.option("--force", is_flag=True, help="Replace an existing page.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no tables.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads.  [default: one for each core]")
@click.version_option(__version__, message="%(prog)s %(version)s")
def inspect_command(
    path: str,
    *,
    list_all: bool,
    exit_code: bool,
    html: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Say what is in a checkpoint or a strategy, and what differs between two checkpoints.

    \b
    Examples:
      pet-inspect base.ckpt
      pet-inspect base.ckpt --all --filter '*.layers.0.*'
      pet-inspect my-peft-adapter/ --spectra
      pet-inspect output/strategy
      pet-inspect output/checkpoint                    one rank's slices, and how ranks differ
      pet-inspect output/checkpoint --src-strategy output/strategy
      pet-inspect base.ckpt merged.safetensors
      pet-inspect base.ckpt Llama-3-8B/ --names hf --exit-code -q
      pet-inspect my-peft-adapter/ --spectra --html adapter.html
      pet-inspect served-adapters/ --html adapters.html

    PATH is any checkpoint that pet-merge reads, a folder of rank_N folders with or without its strategy, or a
    strategy: a file, or a folder with those of all stages. Headers are read, and of the contents the few bytes of
    training scalars. With --spectra the adapters' matrices are read too.

    A folder of adapters, as SLoRA and vLLM serve them, is checked in one go: the adapters' ranks, scales and targets,
    what is wrong with any, how many layers two have in common, and the cosine of what they add to the base. The exit
    code is 5 where something is wrong.

    With OTHER all tensors that both have are read and compared, whatever the formats and layouts. The exit code is 0
    whether they differ or not, unless --exit-code is given.

    \b
    Exit codes:  0 done   2 usage   3 input missing   4 input corrupt   5 inputs don't fit together
                 6 they differ, with --exit-code   7 no memory, I/O error   130 interrupted
    """  # noqa: D301 - click reads \b as "keep these lines"
    if exit_code and options["other"] is None:
        raise UsageError(Problem("--exit-code", "no OTHER", "a checkpoint to compare with", "Name it behind PATH"))
    from ckpt_tools.cli.inspect_summary import summarise
    from ckpt_tools.inspecting import inspect_checkpoint
    from ckpt_tools.writing.linux import allow_open_files, keep_freed_memory

    keep_freed_memory()
    allow_open_files()
    write_page = page_writer(html, {**options, "force": force}, path)
    report = inspect_checkpoint(path, progress=make_progress(quiet), **options)
    write_page(report)
    print_report(report, lambda found: summarise(found, list_all=list_all), as_json=as_json, quiet=quiet)
    broken = [adapter for adapter in report.adapters if adapter.problems]
    if broken:
        names = ", ".join(adapter.name for adapter in broken[:5])
        found = f"{len(broken)} of {len(report.adapters)} adapters that cannot be folded or compared: {names}"
        raise MismatchError(
            Problem(path, found, "LoRA adapters that are whole", "The report says what is wrong with each")
        )
    if exit_code and report.comparison is not None and not report.comparison.equal:
        differing = sum(not tensor.equal_bits for tensor in report.comparison.tensors)
        only = len(report.comparison.only_here) + len(report.comparison.only_there)
        found = f"{differing} tensors that differ, {only} that only one of them has"
        raise VerificationError(Problem(report.comparison.other, found, f"the tensors of {path}, to the bit"))


def main() -> None:
    """Entry point of the script `pet-inspect`."""
    run(inspect_command)


if __name__ == "__main__":
    main()

"""pet-transform: reshard a checkpoint by strategy files."""

from __future__ import annotations

from typing import Any

import click

from ckpt_tools.cli.common import HELP, INPUT, PATH, common_options, make_progress, output_options, print_report, run
from ckpt_tools.cli.page import page_option, page_writer

__all__ = ["main", "transform_command"]


@click.command("pet-transform", context_settings=HELP)
@click.argument("source", metavar="SRC", type=INPUT)
@click.option(
    "--src-strategy",
    type=PATH,
    metavar="FILE|DIR",
    help="How SRC is cut: the strategy that its run saved, or the folder with those of all stages.  [default: whole]",
)
@click.option(
    "--step", metavar="STEP", help="Which step: 9_1 of ranks' files, 120 of Checkpoint 2.0.  [default: the latest]"
)
@click.option(
    "--replicated", multiple=True, metavar="PATTERN", help="Tensors that --src-strategy lacks as every rank has all."
)
@click.option(
    "--allow-missing", multiple=True, metavar="PATTERN", help="Parameters of --dst-strategy that SRC may lack."
)
@click.option("--allow-unused", multiple=True, metavar="PATTERN", help="Tensors of SRC that --dst-strategy may lack.")
@click.option("--allow-nonfinite", is_flag=True, help="Accept values beyond the range of --dtype, as Inf.")
@click.option("--check-replicas", is_flag=True, help="Compare all that SRC holds more than once.")
@click.option("--check-crc", is_flag=True, help="Check the CRC-32 of .ckpt inputs.")
@output_options
@common_options
@page_option
def transform_command(
    source: str,
    *,
    html: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write a distributed checkpoint in another layout.

    \b
    Examples:
      pet-transform output/ --src-strategy strategy.ckpt -o whole.safetensors
      pet-transform output/ --src-strategy stages/ --dst-strategy infer.ckpt -o infer/
      pet-transform llama.ckpt --dst-strategy strategy/ckpt_strategy_rank_0.ckpt -o ranks/
      pet-transform output/ --src-strategy strategy.ckpt --step 10_2 --dry-run

    SRC is a folder of rank_N folders, with --src-strategy; MindFormers' Checkpoint 2.0, without; or a whole
    checkpoint: a .ckpt, a safetensors file or a folder of shards. With --dst-strategy the output is a folder with
    rank_N/checkpoint_N files, which MindSpore loads; without, it is one checkpoint: a file where -o has a suffix,
    else a folder of shards with an index. Inputs are never modified, and the output appears whole or not at all.

    Headers are read first. Every element of the output has to come from exactly one place, and the strategies have to
    speak of the same parameters as the files; all problems are told at once, before anything is written.

    \b
    Exit codes:  0 done   2 usage   3 input missing   4 input corrupt   5 inputs don't fit together
                 7 no room, no memory, I/O error   8 output exists   130 interrupted
    """  # noqa: D301 - click reads \b as "keep these lines"
    from ckpt_tools.cli.transform_summary import summarise
    from ckpt_tools.transforming import transform
    from ckpt_tools.writing.linux import allow_open_files, keep_freed_memory

    keep_freed_memory()
    allow_open_files()
    write_page = page_writer(html, options, source)
    report = transform(source, **options, progress=make_progress(quiet))
    write_page(report)
    print_report(report, summarise, as_json=as_json, quiet=quiet)


def main() -> None:
    """Entry point of the script `pet-transform`."""
    run(transform_command)


if __name__ == "__main__":
    main()

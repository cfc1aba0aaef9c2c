"""pet-split: export the trained delta of a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from ckpt_tools.cli.common import HELP, INPUT, PATH, common_options, make_progress, print_report, run
from ckpt_tools.cli.page import page_option, page_writer

__all__ = ["main", "split_command"]


@click.command("pet-split", context_settings=HELP)
@click.argument("tuned", type=INPUT)
@click.option(
    "--pet-type",
    default="",
    metavar="METHOD",
    help="lora, ptuning2, prefixtuning, adapter, low_rank_adapter or bitfit.  [default: what the names show]",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Parameters to export besides: weights trained whole.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Parameters to leave out.")
@click.option("--alpha", type=float, metavar="F", help="LoRA's alpha, for adapter_config.json.")
@click.option(
    "--config",
    type=PATH,
    metavar="FILE",
    help="A run's YAML or an adapter_config.json with the alpha.  [default: found beside TUNED]",
)
@click.option(
    "--format",
    type=click.Choice(["keep", "ckpt", "safetensors", "peft", "mindformers", "slora"]),
    default="keep",
    show_default=True,
    help="File format, or the library that is to load the adapter.",
)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "bf16", "fp16", "fp32"]),
    default="keep",
    show_default=True,
    help="Element type of all floating-point tensors of the adapter.",
)
@click.option(
    "--names",
    type=PATH,
    default="",
    metavar="keep|hf|mindformers|FILE.json",
    help="Names of the adapter's layers.  [default: as --format asks]",
)
@click.option("--remainder", type=PATH, metavar="PATH", help="Write the rest too, which is the base.")
@click.option("--base", type=PATH, metavar="BASE", help="Extract a LoRA from what a full fine-tune changed of BASE.")
@click.option("--rank", type=click.IntRange(1), metavar="N", help="The rank of each extracted layer.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="Or the least rank that keeps this share of a layer's change; 1 keeps all but rounding.",
)
@click.option(
    "--embeddings",
    type=click.Choice(["save", "extract", "skip"]),
    default="save",
    show_default=True,
    help="What of changed embeddings and output heads: saved whole, extracted as others, or left out.",
)
@click.option("--src-strategy", type=PATH, metavar="FILE|DIR", help="How TUNED's rank folders are cut.")
@click.option("--base-strategy", type=PATH, metavar="FILE|DIR", help="How BASE's rank folders are cut.")
@click.option(
    "--step", metavar="STEP", help="Which step: 9_1 of ranks' files, 120 of Checkpoint 2.0.  [default: the latest]"
)
@click.option(
    "--replicated", multiple=True, metavar="PATTERN", help="Tensors that strategies lack as every rank has all of them."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the randomised SVD.")
@common_options
@page_option
def split_command(tuned: str, *, html: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Export what training changed, alone.

    \b
    Examples:
      pet-split trained.ckpt --alpha 16 -o adapter/
      pet-split trained.ckpt --config run_llama.yaml --format peft -o adapter-hf/
      pet-split my-peft-adapter/ --format mindformers -o adapter-ms/
      pet-split output/checkpoint --src-strategy output/strategy --alpha 16 -o adapter/
      pet-split trained.ckpt --alpha 16 -o adapter/ --remainder base.ckpt
      pet-split tuned.safetensors --base base.safetensors --energy 0.95 --format peft -o extracted/

    TUNED is any checkpoint that pet-merge reads: base and adapter in one, or an adapter alone, which is converted. The
    adapter's parameters of every method are found by their names; optimizer states and training scalars are left out.
    -o is a folder, which gets an adapter_config.json too, or a single file where it has the suffix of one. Only
    headers and the adapter's own bytes are read.

    With --base TUNED is a full fine-tune: of each matrix the nearest low-rank change is extracted, one layer at a
    time, and the report says what it keeps and how far merging it back is from TUNED.

    \b
    Exit codes:  0 done   2 usage   3 input missing   4 input corrupt   5 no delta, or it doesn't fit together
                 7 no room, no memory, I/O error   8 output exists   130 interrupted
    """  # noqa: D301 - click reads \b as "keep these lines"
    from ckpt_tools.cli.split_summary import summarise
    from ckpt_tools.splitting import split
    from ckpt_tools.writing.linux import allow_open_files, keep_freed_memory

    keep_freed_memory()
    allow_open_files()
    write_page = page_writer(html, options, tuned)
    report = split(tuned, **options, progress=make_progress(quiet))
    write_page(report)
    print_report(report, summarise, as_json=as_json, quiet=quiet)


def main() -> None:
    """Entry point of the script `pet-split`."""
    run(split_command)


if __name__ == "__main__":
    main()

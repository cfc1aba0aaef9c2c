"""pet-merge: fold LoRA adapters into a base checkpoint."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from ckpt_tools.cli.combination import combination_options, scale_options
from ckpt_tools.cli.common import HELP, INPUT, PATH, common_options, make_progress, output_options, print_report, run
from ckpt_tools.cli.page import page_option, page_writer

__all__ = ["main", "merge_command"]

_ADAPTER_FORMATS = ("peft", "mindformers", "slora")


@click.command("pet-merge", context_settings=HELP)
@click.argument("base", type=INPUT)
@click.argument("adapters", type=INPUT, nargs=-1, metavar="[ADAPTER]...")
@scale_options
@combination_options
@click.option(
    "--src-strategy", type=PATH, metavar="FILE|DIR", help="How BASE's rank folders are cut: the strategy of its run."
)
@click.option(
    "--adapter-strategy",
    type=PATH,
    multiple=True,
    metavar="FILE|DIR",
    help="The same for adapters in rank folders; once, or once per adapter.",
)
@click.option(
    "--replicated", multiple=True, metavar="PATTERN", help="Tensors that strategies lack as every rank has all of them."
)
@click.option(
    "--step",
    metavar="STEP",
    help="Which step of the training: of the adapters, or of a BASE that holds both.  [default: the latest]",
)
@click.option("--seed", type=int, metavar="N", help="What a dropping METHOD draws by.  [default: 0]")
@click.option("--allow-unused", multiple=True, metavar="PATTERN", help="Adapter keys that may have no home in BASE.")
@click.option("--allow-other-base", is_flag=True, help="Accept another BASE than the one that an ADAPTER was made of.")
@click.option("--allow-nonfinite", is_flag=True, help="Accept NaN, Inf and overflows.")
@click.option("--check-crc/--no-check-crc", default=True, show_default=True, help="Check the CRC-32 of .ckpt inputs.")
@click.option(
    "--unmerge-patch",
    type=PATH,
    metavar="FILE",
    help="Also write what rounding loses of BASE, a few percent of it, so that --unmerge restores it.",
)
@click.option(
    "--unmerge",
    type=PATH,
    metavar="FILE",
    help="The other way round: restore the base of the merged model that BASE is, by the patch FILE.",
)
@click.option("--verify", is_flag=True, help="Prove the written files, as pet-verify --strict, before they appear.")
@click.option(
    "--adapters-only",
    is_flag=True,
    help="There is no BASE: write the combination of all arguments as an adapter.",
)
@partial(output_options, more_formats=_ADAPTER_FORMATS, more_help="; of --adapters-only also a library to load it")
@common_options
@page_option
def merge_command(
    base: str,
    adapters: tuple[str, ...],
    *,
    html: str | None,
    as_json: bool,
    quiet: bool,
    unmerge: str | None,
    adapters_only: bool,
    **options: Any,
) -> None:
    """Fold LoRA adapters into a base checkpoint.

    \b
    Examples:
      pet-merge base.ckpt lora.ckpt --alpha 16
      pet-merge base.ckpt lora.ckpt --config run_llama.yaml -o merged.safetensors
      pet-merge trained.ckpt --alpha 16            base and adapter in one file
      pet-merge Llama-3-8B/ my-peft-adapter/ -o Llama-3-8B-tuned
      pet-merge output/ --src-strategy strategy.ckpt --alpha 16 -o merged.ckpt
      pet-merge base.ckpt lora.ckpt --alpha 16 --dry-run
      pet-merge base.ckpt lora.ckpt --alpha 16 -o merged.ckpt --unmerge-patch merged.patch
      pet-merge --unmerge merged.patch merged.ckpt lora.ckpt -o base.ckpt
      pet-merge base.ckpt style/ law/ --weight 0.7 --weight 0.3 -o merged.ckpt
      pet-merge base.ckpt style/ law/ --method ties --density 0.5 -o merged.ckpt
      pet-merge --adapters-only style/ law/ --method svd -o both/
      pet-merge --adapters-only lora/ --resize-rank 8 -o smaller/

    BASE and ADAPTER are .ckpt or .safetensors files, folders of shards, PEFT folders, MindFormers' Checkpoint 2.0,
    or with a strategy folders of rank_N folders, in any mix; the format is recognised by content. Without ADAPTER,
    BASE holds both. The output has the type, the format and the shards of BASE unless told otherwise, and goes to
    ./<stem of BASE>-merged unless -o names a place. Inputs are never modified, and the output appears whole or not
    at all.

    The scale is alpha / rank. The rank is in the shapes; alpha is in no checkpoint: it comes from --alpha or
    --scaling, from --config, or from the adapter_config.json beside the adapter or up to three folders above.

    Several adapters are weighed, and on one weight summed, exactly; --method chooses PEFT's other ways, of which
    linear, ties, dare_* and magnitude_prune work on A and B, and those with _svd on the whole update, of which they
    keep the highest rank of the adapters, or --resize-rank or --energy. With --adapters-only the arguments are
    adapters alone, of any ranks, scales, targets, spellings and formats, and the output is one adapter, spelled as the
    first, with the scale 1.

    With --unmerge FILE the first argument is the merged model, and the adapters are those that were merged, in any
    order and format; the base comes back bit for bit, and every stretch of it is proved before it is written.

    \b
    Exit codes:  0 done   2 usage   3 input missing   4 input corrupt   5 inputs don't fit together
                 6 verification failed   7 no room, no memory, I/O error   8 output exists
                 130 interrupted
    """  # noqa: D301 - click reads \b as "keep these lines"
    from ckpt_tools.cli.combine import join
    from ckpt_tools.cli.summary import summarise
    from ckpt_tools.cli.unmerge import restore
    from ckpt_tools.merging import merge
    from ckpt_tools.writing.linux import allow_open_files, keep_freed_memory

    keep_freed_memory()
    allow_open_files()
    if unmerge is not None:
        restore(base, adapters, unmerge, options, as_json=as_json, quiet=quiet)
        return
    if adapters_only:
        join((base, *adapters), options, html, as_json=as_json, quiet=quiet)
        return
    write_page = page_writer(html, options, base, *adapters)
    report = merge(base, *adapters, **options, progress=make_progress(quiet))
    write_page(report)
    print_report(report, summarise, as_json=as_json, quiet=quiet)


def main() -> None:
    """Entry point of the script `pet-merge`."""
    run(merge_command)


if __name__ == "__main__":
    main()

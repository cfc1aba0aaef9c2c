"""pet-merge: fold LoRA adapters into a base checkpoint."""

from __future__ import annotations

import click

from ckpt_tools.cli.common import HELP, PATH, common_options, make_progress, print_result, run, say

__all__ = ["main", "merge_command"]


@click.command("pet-merge", context_settings=HELP)
@click.argument("base", type=PATH)
@click.argument("adapters", type=PATH, nargs=-1, metavar="[ADAPTER]...")
@click.option("--alpha", type=float, multiple=True, metavar="F", help="LoRA's alpha; once, or once per adapter.")
@click.option("--scaling", type=float, multiple=True, metavar="F", help="The factor of B @ A itself, instead of alpha.")
@click.option(
    "--config",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="A run's YAML or an adapter_config.json with the alpha.  [default: found beside the adapter]",
)
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
    "--dst-strategy", type=PATH, metavar="FILE|DIR", help="How the output is cut, into rank folders.  [default: whole]"
)
@click.option(
    "--replicated", multiple=True, metavar="PATTERN", help="Tensors that strategies lack as every rank has all of them."
)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "bf16", "fp16", "fp32"]),
    default="keep",
    show_default=True,
    help="Element type of all floating-point tensors of the output.",
)
@click.option(
    "--format",
    type=click.Choice(["keep", "ckpt", "safetensors", "iteration"]),
    default="keep",
    show_default=True,
    help="File format of the output; iteration is MindFormers' Checkpoint 2.0.",
)
@click.option("--max-shard-size", metavar="SIZE", help="Largest shard of a folder, e.g. 5GB.  [default: as in BASE]")
@click.option(
    "--names",
    type=PATH,
    default="keep",
    show_default=True,
    metavar="keep|hf|mindformers|FILE.json",
    help="Names of the output's tensors.",
)
@click.option("--allow-unused", multiple=True, metavar="PATTERN", help="Adapter keys that may have no home in BASE.")
@click.option("--allow-nonfinite", is_flag=True, help="Accept NaN, Inf and overflows.")
@click.option("--check-crc/--no-check-crc", default=True, show_default=True, help="Check the CRC-32 of .ckpt inputs.")
@common_options
def merge_command(
    base: str,
    adapters: tuple[str, ...],
    *,
    alpha: tuple[float, ...],
    scaling: tuple[float, ...],
    config: tuple[str, ...],
    src_strategy: str | None,
    adapter_strategy: tuple[str, ...],
    dst_strategy: str | None,
    replicated: tuple[str, ...],
    dtype: str,
    format: str,
    max_shard_size: str | None,
    names: str,
    allow_unused: tuple[str, ...],
    allow_nonfinite: bool,
    check_crc: bool,
    output: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    threads: int | None,
    max_memory: str | None,
    executor: str,
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

    BASE and ADAPTER are .ckpt or .safetensors files, folders of shards, PEFT folders, MindFormers' Checkpoint 2.0,
    or with a strategy folders of rank_N folders, in any mix; the format is recognised by content. Without ADAPTER,
    BASE holds both. The output has the type, the format and the shards of BASE unless told otherwise, and goes to
    ./<stem of BASE>-merged unless -o names a place. Inputs are never modified, and the output appears whole or not
    at all.

    The scale is alpha / rank. The rank is in the shapes; alpha is in no checkpoint: it comes from --alpha or
    --scaling, from --config, or from the adapter_config.json beside the adapter or up to three folders above.

    \b
    Exit codes:  0 done   2 usage   3 input missing   4 input corrupt   5 inputs don't fit together
                 7 no room, no memory, I/O error   8 output exists   130 interrupted
    """  # noqa: D301 - click reads \b as "keep these lines"
    from ckpt_tools.cli.summary import summarise
    from ckpt_tools.merging import merge
    from ckpt_tools.writing.linux import keep_freed_memory

    keep_freed_memory()
    progress = make_progress(quiet)
    report = merge(
        base,
        *adapters,
        output=output,
        alpha=alpha or None,
        scaling=scaling or None,
        config=config or None,
        src_strategy=src_strategy,
        adapter_strategy=adapter_strategy or None,
        dst_strategy=dst_strategy,
        replicated=replicated,
        dtype=dtype,
        format=format,
        max_shard_size=max_shard_size,
        names=names,
        allow_unused=allow_unused,
        allow_nonfinite=allow_nonfinite,
        check_crc=check_crc,
        force=force,
        dry_run=dry_run,
        threads=threads,
        max_memory=max_memory,
        executor=executor,
        progress=progress,
    )
    for warning in report.warnings:
        say(f"warning: {warning}")
    if as_json:
        print_result(report.to_json())
    elif not quiet:
        print_result(summarise(report))


def main() -> None:
    """Entry point of the script `pet-merge`."""
    run(merge_command)


if __name__ == "__main__":
    main()

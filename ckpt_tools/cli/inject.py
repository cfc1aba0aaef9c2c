"""pet-inject: put the parameters of a PET method into a saved network."""

from __future__ import annotations

from typing import Any

import click

from ckpt_tools.cli.common import HELP, INPUT, PATH, common_options, make_progress, output_options, print_report, run
from ckpt_tools.cli.page import page_option, page_writer

__all__ = ["inject_command", "main"]


@click.command("pet-inject", context_settings=HELP)
@click.argument("base", type=INPUT)
@click.option(
    "--config",
    type=PATH,
    required=True,
    metavar="FILE",
    help="A run's YAML, its pet_config alone, or an adapter_config.json.",
)
@click.option("--adapter", type=PATH, metavar="PATH", help="Graft this trained adapter instead of fresh parameters.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="What fresh parameters are drawn by.")
@click.option("--only-delta", is_flag=True, help="Write the new parameters alone.")
@click.option(
    "--check-network",
    is_flag=True,
    help="Build the network of the YAML and load the output into it; needs pet-surgery[mindspore].",
)
@click.option(
    "--src-strategy", type=PATH, metavar="FILE|DIR", help="How BASE's rank folders are cut: the strategy of its run."
)
@click.option("--adapter-strategy", type=PATH, metavar="FILE|DIR", help="The same for an adapter in rank folders.")
@click.option(
    "--replicated", multiple=True, metavar="PATTERN", help="Tensors that strategies lack as every rank has all of them."
)
@click.option("--step", metavar="STEP", help="Which step of BASE's training.  [default: the latest]")
@click.option(
    "--allow-unused", multiple=True, metavar="PATTERN", help="Adapter keys that may have no place in the network."
)
@click.option("--allow-nonfinite", is_flag=True, help="Accept NaN and Inf, and values beyond --dtype as Inf.")
@click.option("--check-crc", is_flag=True, help="Check the CRC-32 of .ckpt inputs.")
@output_options
@common_options
@page_option
def inject_command(
    base: str,
    *,
    html: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Put the parameters of a PET method into a saved network.

    \b
    Examples:
      pet-inject base.ckpt --config run_llama.yaml -o injected.ckpt
      pet-inject base.ckpt --config run_llama.yaml --only-delta --seed 1 -o fresh/
      pet-inject base.ckpt --config run_llama.yaml --adapter lora.ckpt -o grafted.ckpt
      pet-inject base.ckpt --config run_llama.yaml --dst-strategy strategy.ckpt -o ranks/
      pet-inject Llama-3-8B/ --names mindformers --config run_llama.yaml -o injected/
      pet-inject base.ckpt --config run_llama.yaml --dry-run

    The output is BASE with the parameters that the method of the configuration adds, called, shaped and ordered as
    in the network that MindFormers builds of it: LoRA, P-Tuning v2, Prefix-Tuning, adapters, low-rank adapters, or
    BitFit, which adds none. Their values depend on --seed and their names alone. Beside the output lie
    adapter_config.json and trainable_parameters.json; of a single file they are called after it. Inputs are never
    modified, and the output appears whole or not at all.

    Linear layers are recognised by their weights, and chosen as MindFormers does, by target_modules on the name
    that each cell has in its parent, or by PEFT's rules for a configuration of PEFT's.

    \b
    Exit codes:  0 done   2 usage   3 input missing   4 input corrupt   5 inputs don't fit together
                 6 the network is another   7 no room, no memory, I/O error   8 output exists
                 130 interrupted
    """  # noqa: D301 - click reads \b as "keep these lines"
    from ckpt_tools.cli.inject_summary import summarise
    from ckpt_tools.injecting import inject
    from ckpt_tools.writing.linux import allow_open_files, keep_freed_memory

    keep_freed_memory()
    allow_open_files()
    write_page = page_writer(html, options, base)
    report = inject(base, **options, progress=make_progress(quiet))
    write_page(report)
    print_report(report, summarise, as_json=as_json, quiet=quiet)


def main() -> None:
    """Entry point of the script `pet-inject`."""
    run(inject_command)


if __name__ == "__main__":
    main()

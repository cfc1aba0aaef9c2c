"""pet-verify: prove that a merged checkpoint is base plus adapters, or that an output is what its manifest says."""

from __future__ import annotations

from typing import Any

import click

from ckpt_tools.cli.combination import combination_options, scale_options
from ckpt_tools.cli.common import HELP, INPUT, PATH, make_progress, print_report, run
from ckpt_tools.cli.page import page_option, page_writer
from surgery.errors import VerificationError
from surgery.version import __version__

__all__ = ["main", "verify_command"]


@click.command("pet-verify", context_settings=HELP)
@click.argument("paths", type=INPUT, nargs=-1, required=True, metavar="[BASE [ADAPTER]...] MERGED")
@scale_options
@combination_options
@click.option("--src-strategy", type=PATH, metavar="FILE|DIR", help="How BASE's rank folders are cut.")
@click.option(
    "--adapter-strategy",
    type=PATH,
    multiple=True,
    metavar="FILE|DIR",
    help="The same for adapters in rank folders; once, or once per adapter.",
)
@click.option("--merged-strategy", type=PATH, metavar="FILE|DIR", help="The same for MERGED.")
@click.option(
    "--replicated", multiple=True, metavar="PATTERN", help="Tensors that strategies lack as every rank has all of them."
)
@click.option(
    "--step",
    metavar="STEP",
    help="Which step of the training: of the adapters, or of a BASE that holds both.  [default: the latest]",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bf16", "fp16", "fp32"]),
    default="auto",
    show_default=True,
    help="Element type that MERGED must have; auto is BASE's, or the one that all of MERGED has.",
)
@click.option(
    "--names",
    type=PATH,
    default="auto",
    show_default=True,
    metavar="auto|keep|hf|mindformers|FILE.json",
    help="Names of MERGED's tensors, made of BASE's.",
)
@click.option("--strict", is_flag=True, help="Accept only sums in float32 that are rounded once, as of pet-merge.")
@click.option(
    "--max-ulp", type=float, metavar="F", help="Accept so many units in the last place of the exact value instead."
)
@click.option(
    "--sample",
    type=float,
    default=1.0,
    show_default=True,
    metavar="F",
    help="Read this share of each tensor only, for a quick look.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="What the sample, and a dropping METHOD, is drawn by.",
)
@click.option("--allow-unused", multiple=True, metavar="PATTERN", help="Adapter keys that may have no home in BASE.")
@click.option("--allow-missing", multiple=True, metavar="PATTERN", help="Tensors that MERGED may lack.")
@click.option("--allow-other-base", is_flag=True, help="Accept another BASE than the one that an ADAPTER was made of.")
@click.option("--check-crc/--no-check-crc", default=True, show_default=True, help="Check the CRC-32 of .ckpt inputs.")
@click.option("--public-key", type=PATH, metavar="FILE", help="The key that must have signed MERGED, which is alone.")
@click.option(
    "--sign-key", type=PATH, metavar="FILE", help="A private key: sign MERGED, which is alone, when it passed."
)
@click.option("--signature", type=PATH, metavar="FILE", help="The detached signature.  [default: MERGED.sig]")
@page_option
@click.option("--force", is_flag=True, help="Replace an existing page.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no summary.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads.  [default: one for each core]")
@click.option("--max-memory", metavar="SIZE", help="Anonymous memory at most, e.g. 512MB.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def verify_command(
    paths: tuple[str, ...], *, html: str | None, force: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Prove that a merged checkpoint is base plus adapters, or that an output is what its manifest says.

    \b
    Examples:
      pet-verify base.ckpt lora.ckpt merged.ckpt --alpha 16
      pet-verify Llama-3-8B/ my-peft-adapter/ Llama-3-8B-tuned/ --html proof.html
      pet-verify trained.ckpt merged.ckpt --alpha 16         base and adapter in one file
      pet-verify base.ckpt lora.ckpt ranks/ --merged-strategy infer.ckpt --alpha 16
      pet-verify base.ckpt lora.ckpt merged.ckpt --alpha 16 --sample 0.01
      pet-verify Llama-3-8B-tuned/                           against its own manifest
      pet-verify ranks/ --src-strategy infer.ckpt
      pet-verify Llama-3-8B-tuned/ --sign-key key.pem        and then --public-key key.pub.pem

    Every tensor of BASE, ADAPTER and MERGED is accounted for. What no adapter changes must have BASE's bytes, or be
    BASE's, correctly rounded to MERGED's type. What is changed is computed again in float64, apart from pet-merge's
    arithmetic, and each element must be within what honest rounding can do; --strict allows for no more than
    pet-merge's own. Other files of MERGED, such as config.json, are not looked at. Nothing is written.

    MERGED alone, or any other output of pet-surgery, is compared with the manifest that was written with it: every
    byte of every tensor, and the other files of a folder. A signature is that of model-signing, of all its files.

    \b
    Exit codes:  0 verified   2 usage   3 input missing   4 input corrupt   5 inputs don't fit together
                 6 MERGED is something else   7 no memory, I/O error   130 interrupted
    """  # noqa: D301 - click reads \b as "keep these lines"
    from ckpt_tools.cli.verify_output import SIGNATURES, check_output, refuse_signatures
    from ckpt_tools.cli.verify_summary import summarise
    from ckpt_tools.verifying import verify
    from ckpt_tools.verifying.outcome import problems_of
    from ckpt_tools.writing.linux import allow_open_files, keep_freed_memory

    keep_freed_memory()
    allow_open_files()
    write_page = page_writer(html, {**options, "force": force}, *paths)
    if len(paths) == 1:
        check_output(paths[0], options, write_page, as_json=as_json, quiet=quiet)
        return
    refuse_signatures()
    for name in SIGNATURES:
        del options[name]
    *inputs, merged = paths
    report = verify(*inputs, merged=merged, check=False, **options, progress=make_progress(quiet))
    write_page(report)
    print_report(report, summarise, as_json=as_json, quiet=quiet or not report.passed)
    if not report.passed:
        raise VerificationError(problems_of(report))


def main() -> None:
    """Entry point of the script `pet-verify`."""
    run(verify_command)


if __name__ == "__main__":
    main()

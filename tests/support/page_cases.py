"""Pages of every kind, each of a real run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inject_cases import LORA
from merge_cases import TARGETS, factors, llama, mindpet, save
from transform_cases import write_case

from ckpt_tools import inject, inspect_checkpoint, merge, split, transform, verify, verify_output
from ckpt_tools.pages import write_page

HOSTILE = "<script>alert(1)</script>\"' onload='alert(1)"


def write_pages(folder: Path) -> dict[str, Path]:
    """Kind to page.

    `merge` (8 layers), `look` (hostile, with warnings), `transform`, `extract`, `inject`; `verify` of that merge and
    `wrong` of another one, `manifest`; `spectra` of the adapter, `compare` of base and merge, `strategy`.
    """
    targets = [TARGETS[0].replace(".0.", f".{n}.").replace("wq", m) for n in range(8) for m in ("wq", "wk", "wv", "wo")]
    save(folder / "base.ckpt", llama(layers=8))
    save(folder / "lora.ckpt", mindpet(factors(targets)))
    merged = merge(folder / "base.ckpt", folder / "lora.ckpt", alpha=8, output=folder / "merged.ckpt")
    first = replace(merged.weights[0], name=f"model.layers.0.{HOSTILE}", relative_delta=9.0)
    case = write_case(folder / "case")
    reports = {
        "merge": merged,
        "look": replace(merged, warnings=(HOSTILE,), weights=(first, *merged.weights[1:]), copied=(HOSTILE,)),
        "transform": transform(
            case / "in", src_strategy=case / "src.ckpt", dst_strategy=case / "dst.ckpt", output=folder / "out"
        ),
        "extract": split(folder / "merged.ckpt", base=folder / "base.ckpt", rank=4, output=folder / "extracted"),
        "inject": inject(folder / "base.ckpt", config=LORA, output=folder / "injected.ckpt"),
        "verify": verify(folder / "base.ckpt", folder / "lora.ckpt", merged=folder / "merged.ckpt", alpha=8),
        "wrong": verify(
            folder / "base.ckpt", folder / "lora.ckpt", merged=folder / "merged.ckpt", alpha=4, check=False, sample=0.5
        ),
        "manifest": verify_output(folder / "merged.ckpt"),
        "spectra": inspect_checkpoint(folder / "lora.ckpt", spectra=True),
        "compare": inspect_checkpoint(folder / "base.ckpt", folder / "merged.ckpt"),
        "strategy": inspect_checkpoint(case / "src.ckpt"),
    }
    pages = {}
    for kind, report in reports.items():
        pages[kind] = folder / f"{kind}.html"
        write_page(report, pages[kind])
    return pages

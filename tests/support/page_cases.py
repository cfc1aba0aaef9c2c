"""Pages of every kind, each of a real run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inject_cases import LORA
from merge_cases import RANK, TARGETS, factors, llama, mindpet, peft, save, write_peft
from transform_cases import write_case

from ckpt_tools import combine, inject, inspect_checkpoint, merge, split, transform, verify, verify_output
from ckpt_tools.pages import write_page

HOSTILE = "<script>alert(1)</script>\"' onload='alert(1)"

SERVED = (("law", 1000), ("style", 2000))


def write_pages(folder: Path) -> dict[str, Path]:
    """Kind to page.

    `merge` (8 layers), `look` (hostile, with warnings), `transform`, `extract`, `inject`; `verify` of that merge and
    `wrong` of another one, `manifest`; `spectra` of the adapter, `compare` of base and merge, `strategy`;
    `combine` of two adapters, and `served` of a folder with these and a broken one.
    """
    targets = [TARGETS[0].replace(".0.", f".{n}.").replace("wq", m) for n in range(8) for m in ("wq", "wk", "wv", "wo")]
    save(folder / "base.ckpt", llama(layers=8))
    save(folder / "lora.ckpt", mindpet(factors(targets)))
    merged = merge(folder / "base.ckpt", folder / "lora.ckpt", alpha=8, output=folder / "merged.ckpt")
    first = replace(merged.weights[0], name=f"model.layers.0.{HOSTILE}", relative_delta=9.0)
    case = write_case(folder / "case")
    served = [write_peft(folder / "served" / name, peft(factors(targets, seed)), r=RANK) for name, seed in SERVED]
    (folder / "served" / HOSTILE.replace("/", "")).mkdir()
    (folder / "served" / HOSTILE.replace("/", "") / "adapter_config.json").write_text("{")
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
        "combine": combine(*served, method="ties_svd", density=0.5, output=folder / "combined"),
        "served": inspect_checkpoint(folder / "served"),
    }
    pages = {}
    for kind, report in reports.items():
        pages[kind] = folder / f"{kind}.html"
        write_page(report, pages[kind])
    return pages

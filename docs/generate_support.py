"""Write docs/support.md of what tests found out: `python docs/generate_support.py`.

The results are in docs/support/PAIR.json; the tests that run the networks compare them with what they find, and with
`UPDATE_SUPPORT=1` in the environment write them: `UPDATE_SUPPORT=1 make test`, `UPDATE_SUPPORT=1 make test-classic`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("support.md")
RESULTS = Path(__file__).with_name("support")

PAIRS = {
    "modern": "mindspore 2.9.0, mindpet 1.0.4, mindformers 1.9.0: `pip install 'pet-surgery[mindspore]'`",
    "classic": "mindspore 2.7.2, mindpet 1.0.4, mindformers 1.3.2: `pip install 'pet-surgery[classic]'`",
}
NETWORKS = {
    "plain": "a plain MindSpore network whose attention takes a prefix",
    "llama": "LLaMA",
    "glm2": "ChatGLM2",
    "gpt2": "GPT-2",
    "bloom": "Bloom",
    "parallel_core": "linear layers of the parallel core",
}
METHODS = {
    "lora": "LoRA",
    "ptuning2": "P-Tuning v2",
    "prefixtuning": "Prefix-Tuning",
    "adapter": "bottleneck",
    "low_rank_adapter": "low-rank",
    "bitfit": "BitFit",
}
MODES = {"pynative": "PyNative", "graph": "graph"}
RAN = "build, forward, train"

HEAD = """\
# What is supported

Every method on every network, as far as a CPU runs it, on both pairs of packages. Each cell was built, run and trained
by the tests in the modes that it names: the trained parameters changed, no other bit did, and the losses were finite.
Where `Trainer` stands, MindFormers' Trainer trained it in an example. A number is a reason below the table. This page
is made of the tests' results by `docs/generate_support.py`.
"""
TAIL = """\
## What a CPU does not run

None of this was run, as it needs an Ascend NPU:

- training on several devices. That strategies go from a layer to what takes its place is tested on the operators'
  attributes;
- computing in bfloat16: its parameters are tested in loading, merging and saving;
- flash attention, fused norms and `use_past`, the cache of keys and values;
- whole networks of the parallel core (Qwen 3, DeepSeek 3, GLM 4, TeleChat 3), whose norm, the operator RmsNorm, has no
  kernel for a CPU: of these their linear layers were run.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(pair) for pair in PAIRS), TAIL])


def _section(pair: str) -> str:
    results = json.loads((RESULTS / f"{pair}.json").read_text(encoding="utf-8"))
    networks, trainer = results["networks"], results["trainer"]
    reasons: list[str] = []
    lines = [
        f"## The {pair} pair\n",
        f"{PAIRS[pair]}.\n",
        f"| | {' | '.join(METHODS.values())} |",
        f"|---|{'---|' * len(METHODS)}",
    ]
    for network in NETWORKS:
        if network in networks:
            cells = [
                _cell(networks[network][method], trainer.get(network, {}).get(method, ""), reasons)
                for method in METHODS
            ]
            lines.append(f"| {NETWORKS[network]} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"{number}. {reason}." for number, reason in enumerate(reasons, 1)]
    examples = sorted(
        {example for cells in trainer.values() for text in cells.values() for example in text.split(", ")}
    )
    linked = " and ".join(f"[{Path(example).name}](../{example})" for example in examples)
    return "\n".join([*lines, "", f"By the Trainer: {linked}.", ""])


def _cell(found: Mapping[str, Any], trainer: str, reasons: list[str]) -> str:
    if "refused" in found:
        return f"no ({_number(found['refused'], reasons)})"
    parts = []
    for mode, title in MODES.items():
        if found[mode] == RAN:
            parts.append(title)
        else:
            parts.append(f"no {title} ({_number(found[mode], reasons)})")
    return ", ".join([*parts, *(["Trainer"] if trainer else [])])


def _number(reason: str, reasons: list[str]) -> int:
    if reason not in reasons:
        reasons.append(reason)
    return reasons.index(reason) + 1


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""A chain of commands from one seed."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path
from random import Random

from chains.combining import combine
from chains.injecting import inject
from chains.merging import merge
from chains.running import Figures, Shell
from chains.splitting import convert, split
from chains.state import Chain, begin
from chains.transforming import transform
from chains.wrong import refuse

STEPS = {
    "transform": transform,
    "inject": inject,
    "split": split,
    "convert": convert,
    "merge": merge,
    "combine": combine,
    "refuse": refuse,
}
_WEIGHTS = {"transform": 3, "inject": 3, "split": 8, "convert": 3, "merge": 3, "combine": 3, "refuse": 2}


class ChainError(AssertionError):
    """A chain failed: its seed, its commands, and why."""


def run_chain(seed: int, work: Path, figures: Figures, shell: type[Shell] = Shell) -> list[str]:
    """Run a chain in a folder of its own, which is kept where it fails; its commands.

    Args:
        seed: What decides everything but the moments at which commands are killed.
        work: Where the folder is made.
        figures: Where it is counted what was done.
        shell: What runs commands; another one spoils what they write, to see that it is found.

    Raises:
        ChainError: Something came out otherwise than it must.
    """
    rng = Random(seed)
    folder = work / f"chain-{seed}"
    folder.mkdir(parents=True)
    lines: list[str] = []
    try:
        chain = begin(rng, folder, shell(folder, rng, figures))
        lines = chain.shell.lines
        _run_steps(chain)
    except Exception as error:
        commands = "\n".join([f"cd {folder}", *lines])
        reason = str(error) if isinstance(error, AssertionError) and str(error) else traceback.format_exc()
        (folder / "chain.sh").write_text(f"{commands}\n")
        raise ChainError(f"seed {seed}: {reason}\n\n{commands}\n") from error
    figures.chains += 1
    shutil.rmtree(folder)
    return lines


def _run_steps(chain: Chain) -> None:
    left = chain.rng.randint(3, 8)
    while left:
        name = chain.rng.choices(list(STEPS), list(_WEIGHTS.values()))[0]
        if STEPS[name](chain):
            chain.figures.steps[name] += 1
            left -= 1
    if chain.adapter is not None:
        merge(chain)
        chain.figures.steps["merge"] += 1

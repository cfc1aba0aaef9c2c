"""All commands on small inputs, run in the tests' own process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from commands import Command, run_here
from inject_cases import LORA
from merge_cases import BASE, PAIRS, mindpet, write
from strategy_bytes import strategy_bytes

from ckpt_tools import merge
from ckpt_tools.cli.inject import inject_command
from ckpt_tools.cli.inspect import inspect_command
from ckpt_tools.cli.merge import merge_command
from ckpt_tools.cli.split import split_command
from ckpt_tools.cli.transform import transform_command
from ckpt_tools.cli.verify import verify_command
from ckpt_tools.layout.model import Layout

__all__ = ["COMMANDS", "caller", "write_inputs"]

COMMANDS = {
    "inject": inject_command,
    "inspect": inspect_command,
    "merge": merge_command,
    "split": split_command,
    "transform": transform_command,
    "verify": verify_command,
}


def write_inputs(folder: Path, suffix: str = ".ckpt") -> None:
    """A base, an adapter, what is merged of them, the patch that undoes it, and what configures the commands.

    Args:
        folder: Where they go.
        suffix: What the weights are called, whatever they are.
    """
    (folder / "run.json").write_text(json.dumps({"model": {"model_config": {"pet_config": LORA}}}))
    layouts = {name: Layout((1,), ((),) * array.ndim) for name, array in BASE.items()}
    (folder / f"src{suffix}").write_bytes(strategy_bytes(layouts))
    for stem, arrays in (("base", BASE), ("lora", mindpet(PAIRS)), ("tuned", BASE | mindpet(PAIRS))):
        write(folder / "x.ckpt", arrays).rename(folder / f"{stem}{suffix}")
    files = (folder / f"base{suffix}", folder / f"lora{suffix}")
    merge(*files, output=folder / "merged.ckpt", alpha=8, unmerge_patch=folder / f"patch{suffix}")
    (folder / "merged.pet-manifest.json").unlink()
    (folder / "merged.ckpt").rename(folder / f"merged{suffix}")


def caller(read_streams: Callable[[], tuple[str, str]]) -> Command:
    """A function that runs the command that its first argument names.

    Args:
        read_streams: What came to stdout and stderr since the last call: `capsys.readouterr`.
    """

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        code = run_here(COMMANDS[name], *arguments)
        out, err = read_streams()
        return code, out, err

    return call

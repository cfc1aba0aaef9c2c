"""The options on adapters that merging and proving share: their scales, and how several become one update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ckpt_tools.cli.common import PATH, with_options

__all__ = ["METHOD_NAMES", "combination_options", "scale_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

# Those of `surgery.combining`, whose import takes longer than --help may; a test compares them.
METHOD_NAMES = (
    "cat",
    "linear",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
)


def combination_options(command: Command) -> Command:
    """The options of commands that take several adapters; `--seed` is the command's own."""
    options = (
        click.option(
            "--weight",
            type=float,
            multiple=True,
            metavar="F",
            help="What an adapter is multiplied with besides; once, or once per adapter.  [default: 1]",
        ),
        click.option(
            "--method",
            type=click.Choice(METHOD_NAMES),
            default="cat",
            show_default=True,
            help="How several adapters on one weight become one update: cat is their exact sum, the others are PEFT's.",
        ),
        click.option("--density", type=float, metavar="F", help="Share of the elements that a pruning METHOD keeps."),
        click.option(
            "--majority-sign",
            type=click.Choice(["total", "frequency"]),
            help="How ties elects a sign: by the sum, or by the count.  [default: total]",
        ),
        click.option(
            "--resize-rank", type=int, metavar="N", help="Bring each layer's update to this rank, by its SVD."
        ),
        click.option(
            "--energy",
            type=float,
            metavar="F",
            help="The same, to the least rank that keeps this share of the squares.",
        ),
    )
    return with_options(command, options)


def scale_options(command: Command) -> Command:
    """The options on the factor of B @ A."""
    options = (
        click.option(
            "--alpha", type=float, multiple=True, metavar="F", help="LoRA's alpha; once, or once per adapter."
        ),
        click.option(
            "--scaling", type=float, multiple=True, metavar="F", help="The factor of B @ A itself, instead of alpha."
        ),
        click.option(
            "--config",
            type=PATH,
            multiple=True,
            metavar="FILE",
            help="A run's YAML or an adapter_config.json with the alpha.  [default: found beside the adapter]",
        ),
    )
    return with_options(command, options)

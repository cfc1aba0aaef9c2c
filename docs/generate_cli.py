"""Write what each command's `--help` prints into docs/cli.md: `python docs/generate_cli.py`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ckpt_tools.cli.inject import inject_command
from ckpt_tools.cli.inspect import inspect_command
from ckpt_tools.cli.merge import merge_command
from ckpt_tools.cli.split import split_command
from ckpt_tools.cli.transform import transform_command
from ckpt_tools.cli.verify import verify_command

COMMANDS = (inject_command, inspect_command, merge_command, split_command, transform_command, verify_command)
PAGE = Path(__file__).with_name("cli.md")

_WIDTH = 100


def with_help(page: str) -> str:
    """The page with the help of every command behind its mark, `<!-- help: NAME -->`."""
    for command in COMMANDS:
        block = f"<!-- help: {command.name} -->\n```text\n{help_of(command)}\n```\n"
        pattern = rf"<!-- help: {command.name} -->\n```text\n.*?\n```\n"
        page, count = re.subn(pattern, lambda _, block=block: block, page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE}: expected one mark <!-- help: {command.name} --> with a block, found {count}")
    return page


def help_of(command: click.Command) -> str:
    """What `--help` prints on a terminal of 100 columns."""
    context = click.Context(command, info_name=command.name, terminal_width=_WIDTH, **command.context_settings)
    lines = command.get_help(context).splitlines()
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    PAGE.write_text(with_help(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

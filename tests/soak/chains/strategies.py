"""Strategy files that a command wrote, parsed by the description of the message."""

from __future__ import annotations

import re
from pathlib import Path

from rank_folders import strategy_of

from chains.files import fields
from ckpt_tools.layout.model import Layout, Strategy


def read_merged_strategy(path: Path) -> Strategy:
    """A protobuf strategy of one stage, or of several, whose names begin with the stage's number."""
    layouts = {}
    for number, item in fields(path.read_bytes()):
        if number == 3:
            parts = dict(fields(item))
            layouts[parts[1].decode()] = _layout(parts[2])
    matches = {name: re.fullmatch(r"(\d+)-(.+)", name) for name in layouts}
    if not all(matches.values()):
        return strategy_of(layouts)
    stages: dict[int, dict[str, Layout]] = {}
    for name, match in matches.items():
        stages.setdefault(int(match[1]), {})[match[2]] = layouts[name]
    return strategy_of(*(stages[number] for number in sorted(stages)))


def _layout(message: bytes) -> Layout:
    matrix: list[int] = []
    maps: list[list[int]] = []
    numbers = {5: 0, 6: 0, 7: 0}
    split: list[int] = []
    for number, content in fields(message):
        if number == 1:
            matrix = _dims(content)
        elif number == 2:
            maps.append(_dims(content))
        elif number == 3:
            split = _dims(content)
        elif number in numbers:
            numbers[number] = _signed(content)
    cuts = [[axis] for axis in maps[0]] if len(maps) == 1 else [one for one in maps if one]
    tensor_map = tuple(tuple(axis for axis in one if axis >= 0) for one in cuts)
    return Layout(tuple(matrix), tensor_map, numbers[6], numbers[7], tuple(split))


def _dims(message: bytes) -> list[int]:
    return [_signed(value) for number, value in fields(message) if number == 1]


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value

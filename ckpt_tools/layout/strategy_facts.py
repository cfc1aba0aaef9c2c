"""What a strategy file says, however it is written: layouts by name, each sound in itself, and stages of operators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckpt_tools.formats.ckpt_values import ValueProblems, quote_name
from ckpt_tools.layout.model import Layout
from surgery.errors import CorruptInputError, PetSurgeryError, Problem

__all__ = ["MAX_AXES", "MAX_DEVICES", "FactsBuilder", "StrategyFacts", "axes_of_messages"]

MAX_AXES = 32
"""Axes of a tensor (numpy 1.x; MindSpore stops at 8 for most operators) and of a device matrix."""

MAX_DEVICES = 2**20
"""Devices of a pipeline stage: far above any cluster, and few enough to be walked one by one."""

_MAX_LAYOUTS = 1_000_000
_MAX_ALL_NAME_CHARACTERS = 100_000_000
_MAX_STAGES = 2**32

_WRONG_FILE = "The file is damaged or was written by another tool: save the strategy again"
_SAVE_LAYOUTS = (
    "Save the strategy of the parameters: MindSpore's AutoParallel.save_param_strategy_file, or MindFormers' "
    "parallel.strategy_ckpt_config.save_file"
)


@dataclass(frozen=True, slots=True)
class StrategyFacts:
    """One strategy file.

    Attributes:
        path: The file.
        layouts: Parameter name to layout, as the file has them; in a merged file the names are `STAGE-name`.
        operator_stages: The pipeline stages that its operators name.
    """

    path: str
    layouts: Mapping[str, Layout]
    operator_stages: frozenset[int]


class FactsBuilder:
    """Takes in what a parser finds, checks each layout in itself, and keeps the problems to raise them together."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.last_name: str | None = None
        self._layouts: dict[str, Layout] = {}
        self._stages: set[int] = set()
        self._problems = ValueProblems()
        self._name_characters = 0
        # Thousands of parameters share a few layouts.
        self._faults: dict[Layout, tuple[tuple[str, str], ...]] = {}

    @property
    def enough(self) -> bool:
        """Whether there are so many problems that looking for more is of no use."""
        return self._problems.enough

    def add_error(self, error: PetSurgeryError) -> None:
        """Remember what is wrong with a part of the file."""
        self._problems.add(error)

    def add_stage(self, stage: int, where: str) -> None:
        """Take in the stage that an operator names."""
        if 0 <= stage < _MAX_STAGES:
            self._stages.add(stage)
        else:
            self._complain(where, f"stage {stage}", "a number of 32 bits")

    def add_layout(self, name: str, layout: Layout) -> None:
        """Take in the layout of a parameter.

        Raises:
            CorruptInputError: There are more than any model has.
        """
        where = f"{self.path}, parameter {quote_name(name)}"
        if not name:
            self._complain(where, "an empty name", "a name")
        if name in self._layouts:
            self._complain(where, "a second layout", "one")
        faults = self._faults.get(layout)
        if faults is None:
            faults = self._faults[layout] = _faults_of(layout)
        for found, expected in faults:
            self._complain(where, found, expected)
        self._layouts[name] = layout
        self.last_name = name
        self._name_characters += len(name)
        if len(self._layouts) > _MAX_LAYOUTS or self._name_characters > _MAX_ALL_NAME_CHARACTERS:
            found = f"{len(self._layouts):,} layouts, with {self._name_characters:,} characters of names"
            expected = f"at most {_MAX_LAYOUTS:,} and {_MAX_ALL_NAME_CHARACTERS:,}"
            raise CorruptInputError(Problem(self.path, found, expected, _WRONG_FILE))

    def build(self) -> StrategyFacts:
        """What the file says.

        Raises:
            CorruptInputError: Something is wrong with it, or there is no layout in it.
        """
        self._problems.raise_if_any()
        if not self._layouts:
            found = "a strategy without the layout of any parameter"
            raise CorruptInputError(Problem(self.path, found, "at least one (parallel_layout_item)", _SAVE_LAYOUTS))
        return StrategyFacts(self.path, self._layouts, frozenset(self._stages))

    def _complain(self, where: str, found: str, expected: str) -> None:
        self._problems.add(CorruptInputError(Problem(where, found, expected, _WRONG_FILE)))


def axes_of_messages(messages: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...] | None:
    """A tensor map of several messages: one for each axis of the tensor, with the device axes that cut it.

    MindSpore writes [-1] for an axis that is not cut. It adds an empty message where the tensor has one axis, for a
    single message would mean one device axis a tensor axis, and drops all empty ones when it reads. An empty one in
    front of others would shift the axes behind it.

    Returns:
        A normalised `Layout.tensor_map`; None where an empty message stands in front of others.
    """
    count = len(messages)
    while count and not messages[count - 1]:
        count -= 1
    if not all(messages[:count]):
        return None
    return tuple(tuple(axis for axis in message if axis != -1) for message in messages[:count])


def _faults_of(layout: Layout) -> tuple[tuple[str, str], ...]:
    """What no layout can be, each as found and expected."""
    matrix = list(layout.device_matrix)
    faults = []
    if any(size < 1 for size in matrix):
        faults.append((f"the device matrix {matrix}", "sizes of at least 1"))
    elif math.prod(matrix) > MAX_DEVICES:
        faults.append((f"the device matrix {matrix}", f"at most {MAX_DEVICES:,} devices"))
    used = [axis for axes in layout.tensor_map for axis in axes]
    if outside := sorted({axis for axis in used if not 0 <= axis < len(matrix)}):
        expected = f"-1 or an axis of the device matrix {matrix}, counted from the right from 0"
        if any(len(axes) > 1 for axes in layout.tensor_map):
            expected += (
                " (in protobuf MindSpore leaves device axes of size 1, and interleaved_parallel, out of the matrix of "
                "a Layout(...), and counts them in its map; in JSON, save_file: NAME.json, both agree)"
            )
        faults.append((f"a tensor map with the device axis {outside[0]}", expected))
    if twice := sorted(axis for axis in set(used) if used.count(axis) > 1):
        faults.append((f"a tensor map that uses the device axis {twice[0]} twice", "each device axis at most once"))
    if not 0 <= layout.shard_step <= MAX_DEVICES:
        faults.append((f"opt_weight_shard_step {layout.shard_step}", f"0 to {MAX_DEVICES:,}"))
    if not -1 <= layout.shard_size <= MAX_DEVICES:
        faults.append((f"opt_weight_shard_size {layout.shard_size}", f"-1 to {MAX_DEVICES:,}"))
    if not -(2**31) <= layout.field < 2**31:
        faults.append((f"field {layout.field}", "a number of 32 bits, as protobuf has it"))
    if any(length < 1 for length in layout.split_shape):
        faults.append(("param_split_shape with a length below 1", "lengths of at least 1"))
    return tuple(faults)

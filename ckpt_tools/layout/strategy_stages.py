"""The pipeline stages that strategy files speak of, put together as `merge_pipeline_strategys` does, but checked.

MindSpore takes the first file of a stage and passes over others, takes the stage of a file from whichever operator
comes first, and takes a parameter with a '-' in its name for one of a merged file.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.layout.model import Layout
from ckpt_tools.layout.strategy_facts import StrategyFacts
from surgery.errors import CorruptInputError, MismatchError, PetSurgeryError, Problem

__all__ = ["check_devices", "join_stages"]

_Layouts = Mapping[str, Layout]

_MERGED_NAME = re.compile(r"(0|[1-9][0-9]{0,9})-(.+)", re.DOTALL)
_MAX_LISTED = 5
_MAX_PROBLEMS = 20

_PASS_FOLDER = "Pass the folder that holds the strategy files of all stages, or the file they were merged into"
_ONE_RUN = "Give the files of one run, and of that run only"


def join_stages(files: Sequence[StrategyFacts], path: str) -> tuple[_Layouts, ...]:
    """The layouts of each stage.

    Args:
        files: The strategy files of one run, at least one; those of the same stage have to say the same.
        path: The file or folder that the user gave, for errors.

    Raises:
        CorruptInputError: A file does not say which stage it is of.
        MismatchError: Stages are missing, or two files contradict each other.
    """
    found: dict[int, tuple[str, _Layouts]] = {}
    problems: list[Problem] = []
    unclear: list[PetSurgeryError] = []
    for facts in files:
        try:
            of_file = _by_stage(facts, is_alone=len(files) == 1)
        except CorruptInputError as error:
            unclear.append(error)
            continue
        for stage, layouts in of_file.items():
            first_path, first = found.setdefault(stage, (facts.path, layouts))
            if first is not layouts and first != layouts:
                problems.append(_contradiction(stage, first_path, first, facts.path, layouts))
    if unclear:
        raise CorruptInputError(problem for error in unclear[:_MAX_PROBLEMS] for problem in error.problems)
    stages = sorted(found)
    if stages[-1] != len(stages) - 1:
        has = f"only {_stages(_ranges(stages))} of the pipeline"
        problems.append(Problem(path, has, f"{_stages(_gaps(stages))} too", _PASS_FOLDER))
    if problems:
        raise MismatchError(problems[:_MAX_PROBLEMS])
    return tuple(found[stage][1] for stage in stages)


def check_devices(stages: Sequence[_Layouts], path: str) -> int:
    """The devices of a stage: the product of every device matrix.

    Args:
        stages: The layouts of each stage.
        path: The file or folder that the user gave, for errors.

    Raises:
        MismatchError: The device matrices are of different sizes.
    """
    counts = Counter(layout.devices for layouts in stages for layout in layouts.values())
    devices, agreeing = counts.most_common(1)[0]
    if len(counts) == 1:
        return devices
    offenders: dict[tuple[int, tuple[int, ...]], list[str]] = defaultdict(list)
    for stage, layouts in enumerate(stages):
        for name, layout in layouts.items():
            if layout.devices != devices:
                offenders[stage, layout.device_matrix].append(name)
    problems = []
    for (stage, matrix), names in offenders.items():
        layout = stages[stage][names[0]]
        found = f"{layout.devices:,} devices, by the device matrix {list(matrix)}"
        expected = f"{devices:,} as for {agreeing:,} other parameters: all stages have as many"
        problems.append(Problem(f"{path}, stage {stage}, {_names(names)}", found, expected, _ONE_RUN))
    raise MismatchError(problems[:_MAX_PROBLEMS])


def _by_stage(facts: StrategyFacts, is_alone: bool) -> dict[int, _Layouts]:
    matches = [_MERGED_NAME.fullmatch(name) for name in facts.layouts]
    if not all(matches):
        return {_stage_of_operators(facts, is_alone): facts.layouts}
    stages: dict[int, dict[str, Layout]] = defaultdict(dict)
    for match, layout in zip(matches, facts.layouts.values(), strict=True):
        if match is not None:
            stages[int(match[1])][match[2]] = layout
    return dict(stages)


def _stage_of_operators(facts: StrategyFacts, is_alone: bool) -> int:
    # MindSpore says 0 of operators whose strategy it made up itself, whatever the stage.
    stages = sorted(facts.operator_stages - {0}) or sorted(facts.operator_stages)
    if len(stages) > 1:
        remedy = "Give the strategy files that the stages wrote, or merge them with merge_pipeline_strategys"
        found = f"operators of {_stages(_ranges(stages))}, but parameters without one"
        raise CorruptInputError(Problem(facts.path, found, "names as STAGE-name, or operators of one stage", remedy))
    if not stages and not is_alone:
        found = "no operator (parallel_strategy_item) that names its stage"
        raise CorruptInputError(
            Problem(facts.path, found, "one, as there are several strategy files", "Pass the file itself if it is all")
        )
    return stages[0] if stages else 0


def _contradiction(stage: int, path: str, layouts: _Layouts, other_path: str, other: _Layouts) -> Problem:
    names = [name for name in {**layouts, **other} if layouts.get(name) != other.get(name)]
    found = f"another layout than in {path} for {_names(names)}"
    return Problem(f"{other_path}, stage {stage}", found, "one layout of a parameter in each stage", _ONE_RUN)


def _names(names: Sequence[str]) -> str:
    listed = ", ".join(quote_name(name) for name in names[:_MAX_LISTED])
    more = f" and {len(names) - _MAX_LISTED:,} more" if len(names) > _MAX_LISTED else ""
    return f"parameter{'s' if len(names) > 1 else ''} {listed}{more}"


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as first and last of each run."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _gaps(stages: Sequence[int]) -> list[tuple[int, int]]:
    """What is missing from 0 on; never counted one by one, as a file may name any number."""
    runs = [(-1, -1), *_ranges(stages)]
    return [(last + 1, first - 1) for (_, last), (first, _) in itertools.pairwise(runs) if first - last > 1]


def _stages(runs: Sequence[tuple[int, int]]) -> str:
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:_MAX_LISTED]]
    if len(runs) > _MAX_LISTED:
        texts.append("more")
    is_one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"stage {texts[0]}" if is_one else f"stages {', '.join(texts)}"

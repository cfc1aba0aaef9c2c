"""mindspore.transform_checkpoints as a process of its own: SOURCE SOURCE_STRATEGY TARGET TARGET_STRATEGY FORMAT."""

from __future__ import annotations

import sys
from pathlib import Path

import mindspore

if __name__ == "__main__":
    source, source_strategy, target, target_strategy, form = sys.argv[1:]
    Path(target).mkdir(parents=True)
    mindspore.transform_checkpoints(source, target, "checkpoint_", source_strategy, target_strategy, output_format=form)

"""MindFormers' Trainer on networks that this project adapted, on a CPU: what the examples with it share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

RUNS = Path(__file__).parent / "runs"


def write_data(folder: Path, *, tokens: int = 17, samples: int = 16, vocabulary: int = 120) -> Path:
    """A MindRecord of random tokens; a LLaMA or a GPT-2 of `seq_length` 16 trains on 17 of them.

    Args:
        folder: Where it goes.
        tokens: Tokens of a sample.
        samples: How many there are.
        vocabulary: Tokens are below it.

    Returns:
        The folder.
    """
    from mindspore.mindrecord import FileWriter

    folder.mkdir(parents=True)
    writer = FileWriter(str(folder / "tiny.mindrecord"), shard_num=1, overwrite=True)
    writer.add_schema({"input_ids": {"type": "int32", "shape": [-1]}}, "tiny")
    draw = np.random.default_rng(0)
    writer.write_raw_data(
        [{"input_ids": draw.integers(1, vocabulary, tokens).astype(np.int32)} for _ in range(samples)]
    )
    writer.commit()
    return folder


def read_run(name: str) -> Any:
    """A run of `examples/runs` as MindFormers reads it, and MindSpore's context set as it says."""
    import mindspore
    from mindformers.tools.register import MindFormerConfig

    config = MindFormerConfig(str(RUNS / f"{name}.yaml"))
    mindspore.set_context(mode=config.context.mode, device_target=config.context.device_target)
    return config


def adapt_to_modern(config: Any) -> None:
    """Change a run, which MindFormers 1.3.2 reads, to what 1.9.0 has: other optimizers, and no wrapper for a CPU.

    Its wrapper asks an NPU whether a step overflowed; this one looks at the gradients.

    Args:
        config: The run; changed.
    """
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
    from mindformers.wrapper.wrapper import MFTrainOneStepCell
    from mindspore import ops

    class CPUTrainOneStepCell(MFTrainOneStepCell):  # type: ignore[misc]  # MindFormers has no types
        """MindFormers' own training step, on a CPU."""

        def get_overflow_status(self, status: Any, compute_output: Any) -> Any:
            """Whether a gradient is not finite."""
            finite = True
            for gradient in compute_output:
                finite = ops.logical_and(finite, ops.isfinite(gradient).all())
            return ops.logical_not(finite)

    MindFormerRegister.register_cls(CPUTrainOneStepCell, MindFormerModuleType.WRAPPER)
    config.runner_wrapper.type = "CPUTrainOneStepCell"
    config.optimizer.type = "AdamW"
    config.optimizer.betas = [config.optimizer.pop("beta1"), config.optimizer.pop("beta2")]

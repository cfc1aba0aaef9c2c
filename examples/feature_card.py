"""The YAMLs of MindFormers' card on low-parameter fine-tuning, shrunk, trained by its Trainer.

`python -m examples.feature_card FOLDER RUN ...` for runs of examples/runs: `gpt2_lora` (the classic pair of packages),
`llama_ptuning2`, `llama_prefixtuning` (either pair). The network is built of the run and adapted by
`surgery.get_pet_model`, and goes straight into the Trainer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mindformers
from mindformers.trainer import Trainer

from examples.trained_by_mindformers import adapt_to_modern, read_run, write_data
from surgery import DeltaCheckpoint, inject


def main(folder: Path, name: str) -> None:
    """Train a run, and keep the delta.

    Args:
        folder: Where everything is written.
        name: The run, as `gpt2_lora`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    run = read_run(name)
    model_name = {"model_name": run.trainer.model_name}
    if not mindformers.__version__.startswith("1.3"):
        adapt_to_modern(run)
        model_name = {}  # 1.9.0 knows neither GPT-2 nor LLaMA by name
    injection = inject(None, run)
    print(injection.report)
    trainer = Trainer(
        args=run,
        task="text_generation",
        model=injection.network,
        train_dataset=str(write_data(Path("data"))),
        callbacks=DeltaCheckpoint("adapter", run, every_steps=4, keep=2),
        **model_name,
    )
    trainer.finetune()
    print(f"{name} saved", *sorted(path.name for path in Path("adapter").iterdir()))


if __name__ == "__main__":
    where = Path(sys.argv[1]).absolute()
    for run_name in sys.argv[2:]:
        main(where / run_name, run_name)

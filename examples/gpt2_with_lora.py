"""The GPT-2 example of MindFormers' design document on adapters, as it is written there, trained by its Trainer.

`GPT2WithLora` puts LoRA into itself: it sets `reg_rules`, which no release of MindFormers reads, and calls the
adapters. Their import alone differs: they are this project's. It needs the classic pair of packages, the last with
GPT-2: pip install 'pet-surgery[classic]'. Run `python -m examples.gpt2_with_lora FOLDER`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mindformers import GPT2LMHeadModel
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.trainer import Trainer

from examples.trained_by_mindformers import read_run, write_data
from surgery import DeltaCheckpoint, LoraAdapter, PetAdapter

REG_RULES = r".*dense*|.*linear*|.*mapping*|.*projection*"


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class GPT2WithLora(GPT2LMHeadModel):  # type: ignore[misc]  # MindFormers has no types
    """GPT-2 with LoRA beside every linear layer of its blocks.

    Args:
        config: The network's configuration.
        pet: The method and its configuration: `model.arch.pet` of the run.
    """

    def __init__(self, config: Any = None, pet: Any = None) -> None:
        super().__init__(config)
        self.pet = pet
        self.pet.pet_config.reg_rules = REG_RULES
        self.backbone: Any = LoraAdapter.get_pet_model(self.backbone, self.pet.pet_config)
        self.load_checkpoint(config)
        PetAdapter.freeze_pretrained_model(self, self.pet.pet_type)


def main(folder: Path) -> None:
    """Train it, and keep the delta.

    Args:
        folder: Where everything is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    run = read_run("gpt2_with_lora")
    data = write_data(Path("data"))
    # What is written beside the delta, for a merge, has to know the rule that the network sets itself.
    config = {"pet_type": "lora", **run.model.arch.pet.pet_config, "reg_rules": REG_RULES}
    trainer = Trainer(
        args=run,
        task="text_generation",
        model="gpt2",
        pet_method="lora",
        train_dataset=str(data),
        callbacks=DeltaCheckpoint("adapter", config, every_steps=4, keep=2),
    )
    trainer.finetune()
    print("saved", *sorted(path.name for path in Path("adapter").iterdir()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

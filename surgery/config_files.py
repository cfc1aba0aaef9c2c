"""Where an adapter's configuration lies, and which kind of file it is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from surgery.adapter_facts import SECTION
from surgery.config import LoraConfig
from surgery.documents import read_json, read_yaml
from surgery.mindformers_config import parse_mindformers_manifest, parse_run
from surgery.peft_config import parse_peft_config

__all__ = ["config_beside", "find_adapter_config", "parse_adapter_config", "read_adapter_config"]

# Where both lie in one folder, the manifest wins, as in MindFormers: it is written with the checkpoint, while
# `adapter_config.json` may be of an earlier run into the same output folder.
_NAMES = ("mindformers_adapter_config.json", "adapter_config.json")
_FOLDERS_ABOVE = 3


def find_adapter_config(adapter: str | os.PathLike[str]) -> tuple[Path | None, tuple[Path, ...]]:
    """Look for an adapter's configuration beside it and up to three folders above.

    What is called after the adapter's file, as `lora.adapter_config.json` for `lora.ckpt`, is its own and comes first.
    A nearer folder wins over a farther one, whatever the file's name.

    Args:
        adapter: The adapter's file or folder.

    Returns:
        (the configuration or None, every path that was looked at, in order).
    """
    start = Path(adapter).absolute()
    folder = start if start.is_dir() else start.parent
    looked_at = [] if start.is_dir() else [config_beside(start)]
    if looked_at and looked_at[0].is_file():
        return looked_at[0], tuple(looked_at)
    for place in (folder, *list(folder.parents)[:_FOLDERS_ABOVE]):
        for name in _NAMES:
            looked_at.append(place / name)
            if looked_at[-1].is_file():
                return looked_at[-1], tuple(looked_at)
    return None, tuple(looked_at)


def config_beside(file: Path) -> Path:
    """Where the configuration of one file lies, and of no other in its folder."""
    return file.with_name(f"{file.stem}.{_NAMES[-1]}")


def read_adapter_config(path: str | os.PathLike[str]) -> LoraConfig:
    """Read a LoRA configuration of any kind; the kind is told by content.

    Args:
        path: PEFT's or MindFormers' JSON, or a run's YAML. A folder stands for the configuration in it.

    Raises:
        InputMissingError: There is no such file.
        CorruptInputError: It is no configuration.
        MismatchError: It is one that cannot be folded, or that is not known.
    """
    file = Path(path)
    if file.is_dir():
        file = next((file / name for name in _NAMES if (file / name).is_file()), file / _NAMES[-1])
    if file.suffix.lower() in {".yaml", ".yml"}:
        return parse_run(read_yaml(file), str(file))
    return parse_adapter_config(read_json(file), str(file))


def parse_adapter_config(values: dict[str, Any], source: str) -> LoraConfig:
    """The same of a JSON object. See `read_adapter_config`.

    Args:
        values: The object.
        source: Where it was read from.
    """
    if "peft_type" in values:
        config = parse_peft_config(values, source)
    elif "format" in values:
        config = parse_mindformers_manifest(values, source)
    else:
        config = parse_run(values, source)  # a run's configuration, saved as JSON
    section = values.get(SECTION)
    said = section.get("base_fingerprint") if isinstance(section, dict) else None
    return replace(config, base_fingerprint=said) if isinstance(said, str) else config

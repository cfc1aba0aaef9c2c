"""Documents that are larger than any honest one: refused by their size, before a byte of them is parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from merge_cases import save

from ckpt_tools.formats import open_checkpoint, read_iteration
from ckpt_tools.layout import read_strategy
from ckpt_tools.verifying.manifests import read_manifest
from surgery.config_files import read_adapter_config
from surgery.documents import read_json
from surgery.errors import CorruptInputError
from surgery.translation import load_name_map

JSON = 100_000_000
READERS: list[tuple[str, int, Callable[[Path], object]]] = [
    ("model.safetensors.index.json", JSON, open_checkpoint),
    ("strategy.json", JSON, read_strategy),
    ("pet-manifest.json", JSON, lambda path: read_manifest(path.parent)),
    ("metadata.json", 2**30, lambda path: read_iteration(path.parent)),
    ("common.json", 4 * 2**20, lambda path: read_iteration(path.parent)),
    ("adapter_config.json", 2**25, read_adapter_config),
    ("names.json", 2**25, load_name_map),
    ("run.yaml", 2**19, read_adapter_config),
]


@pytest.mark.parametrize(("name", "max_bytes", "read"), READERS, ids=[name for name, _, _ in READERS])
def test_a_document_beyond_its_limit_is_corrupt(
    tmp_path: Path, name: str, max_bytes: int, read: Callable[[Path], object]
) -> None:
    save(tmp_path / "model-0000000-0000001.safetensors", {"w": np.zeros(2, np.float32)})
    path = tmp_path / name
    path.write_text('{"state_dict_metadata": {}}' + 600 * " ")
    with path.open("r+b") as file:
        file.truncate(max_bytes + 1)
    with pytest.raises(CorruptInputError) as caught:
        read(path)
    assert caught.value.exit_code == 4
    assert f"{max_bytes + 1:,} bytes" in str(caught.value)
    assert f"at most {max_bytes:,}" in str(caught.value)


def test_a_configuration_may_speak_of_each_layer_of_the_largest_models(tmp_path: Path) -> None:
    names = [f"model.layers.{number % 61}.mlp.experts.{number}.gate_proj" for number in range(70_000)]
    values = {key: dict.fromkeys(names, 16) for key in ("rank_pattern", "alpha_pattern")} | {"target_modules": names}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values, indent=2))
    assert read_json(tmp_path / "adapter_config.json") == values
    renamed = {f"{name}.weight": f"base_model.model.{name}.weight" for name in names}
    (tmp_path / "names.json").write_text(json.dumps(renamed, indent=2))
    assert load_name_map(tmp_path / "names.json") == renamed

"""Where a configuration is looked for, and how its kind is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgery.config_files import find_adapter_config, read_adapter_config
from surgery.errors import InputMissingError

PEFT = '{"peft_type": "LORA", "r": 4, "lora_alpha": 8}'
MANIFEST = '{"format": "mindformers_pynative_lora_adapter_v1", "lora_config": {"lora_rank": 4, "lora_alpha": 8}}'
RUN = "pet_config: {lora_rank: 4, lora_alpha: 8}"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter three folders below `tmp_path`."""
    folder = tmp_path / "output" / "checkpoint" / "rank_0"
    folder.mkdir(parents=True)
    (folder / "lora.ckpt").touch()
    return folder / "lora.ckpt"


@pytest.mark.parametrize("up", [0, 1, 2, 3])
def test_a_configuration_is_found_up_to_three_folders_above(adapter: Path, up: int) -> None:
    expected = adapter.parents[up] / "adapter_config.json"
    expected.write_text(PEFT)
    assert find_adapter_config(adapter)[0] == expected
    assert find_adapter_config(adapter.parent)[0] == expected


def test_a_configuration_four_folders_above_is_not_looked_at(adapter: Path, tmp_path: Path) -> None:
    deeper = adapter.parent / "deeper"
    deeper.mkdir()
    (tmp_path / "adapter_config.json").write_text(PEFT)
    found, looked_at = find_adapter_config(deeper)
    assert found is None
    assert tmp_path / "adapter_config.json" not in looked_at
    assert len(looked_at) == 8


def test_every_place_is_reported_in_order(adapter: Path) -> None:
    found, looked_at = find_adapter_config(adapter)
    assert found is None
    assert looked_at[0] == adapter.with_name("lora.adapter_config.json")
    assert [path.parent for path in looked_at[1::2]] == list(adapter.parents)[:4]
    assert [path.name for path in looked_at[1:3]] == ["mindformers_adapter_config.json", "adapter_config.json"]


def test_what_is_called_after_the_file_is_its_own_and_no_others(adapter: Path) -> None:
    (adapter.parent / "adapter_config.json").write_text(PEFT)
    own = adapter.with_name("lora.adapter_config.json")
    own.write_text(PEFT)
    assert find_adapter_config(adapter)[0] == own
    assert find_adapter_config(adapter.with_name("other.ckpt"))[0] == adapter.parent / "adapter_config.json"
    assert find_adapter_config(adapter.parent)[0] == adapter.parent / "adapter_config.json"


def test_the_manifest_wins_in_one_folder(adapter: Path) -> None:
    (adapter.parent / "adapter_config.json").write_text(PEFT)
    (adapter.parent / "mindformers_adapter_config.json").write_text(MANIFEST)
    assert find_adapter_config(adapter)[0] == adapter.parent / "mindformers_adapter_config.json"
    assert read_adapter_config(adapter.parent).source.endswith("mindformers_adapter_config.json")


def test_the_nearer_folder_wins_over_the_name(adapter: Path) -> None:
    (adapter.parent / "adapter_config.json").write_text(PEFT)
    (adapter.parents[1] / "mindformers_adapter_config.json").write_text(MANIFEST)
    assert find_adapter_config(adapter)[0] == adapter.parent / "adapter_config.json"


def test_a_folder_of_that_name_is_no_configuration(adapter: Path) -> None:
    (adapter.parent / "adapter_config.json").mkdir()
    assert find_adapter_config(adapter)[0] is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", PEFT),
        ("renamed.json", PEFT),
        ("renamed.json", MANIFEST),
        ("run.yaml", RUN),
        ("run.YML", RUN),
        ("run.json", '{"pet_config": {"lora_rank": 4, "lora_alpha": 8}}'),
    ],
)
def test_the_kind_is_told_by_content(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    config = read_adapter_config(tmp_path / name)
    assert (config.rank, config.alpha, config.source) == (4, 8.0, str(tmp_path / name))


def test_a_folder_without_configuration_is_missing_one(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match=r"adapter_config\.json"):
        read_adapter_config(tmp_path)

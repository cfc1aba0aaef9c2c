"""Where an output may go, and what a dry run tells before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from merge_cases import (
    BASE,
    HF_TERMS,
    TERMS,
    Merge,
    add_crc,
    assert_all_merged,
    contents,
    hf_folder,
    hugging_face,
    names_of,
    tree,
    with_manifest_of,
    write,
)

from ckpt_tools import merge, open_checkpoint
from surgery.errors import OutputExistsError, UsageError


def test_a_crc_is_kept_where_the_base_has_one(tmp_path: Path, merged: Merge) -> None:
    add_crc(write(tmp_path / "base.ckpt", BASE))
    report = merged("base.ckpt", output="out.ckpt")
    checkpoint = open_checkpoint("out.ckpt")
    assert checkpoint.crc
    assert report.bytes_written == Path("out.ckpt").stat().st_size
    merge("out.ckpt", tmp_path / "lora.ckpt", alpha=8, output="again.ckpt")  # which checks it


@pytest.mark.parametrize("with_crc", [False, True])
@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("base.ckpt", {"output": "out.ckpt"}),
        ("base.ckpt", {"output": "out.safetensors", "dtype": "fp32"}),
        ("base.ckpt", {"output": "out", "max_shard_size": 2000}),
        ("base", {"output": "out"}),
        ("base", {"output": "out", "format": "ckpt", "names": "mindformers"}),
    ],
)
def test_a_dry_run_writes_nothing_and_predicts_all_that_a_run_reports(
    tmp_path: Path, merged: Merge, base: str, options: dict[str, object], with_crc: bool
) -> None:
    hf_folder(tmp_path / "base")
    write(tmp_path / "base.ckpt", BASE)
    if with_crc:
        add_crc(tmp_path / "base.ckpt")
    before = tree(tmp_path)
    dry = merged(base, dry_run=True, **options)
    assert tree(tmp_path) == before
    assert dry.dry_run
    report = merged(base, **options)
    written = contents(Path(report.output))
    assert dry.bytes_written == report.bytes_written == sum(len(data) for data in written.values())
    assert sorted(dry.files) == sorted(
        written if Path(report.output).is_dir() else ["out" + Path(report.output).suffix]
    )
    for field in (
        "output",
        "base_fingerprint",
        "adapters",
        "format",
        "files",
        "copied",
        "cast",
        "dropped",
        "bytes_read",
    ):
        assert getattr(dry, field) == getattr(report, field)
    assert [weight.name for weight in dry.weights] == [weight.name for weight in report.weights]
    assert dry.peak_memory_bytes <= 256 * 2**20
    assert dry.free_disk_bytes > 0


def test_a_dry_run_is_refused_where_the_run_would_be(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    Path("base-merged.ckpt").write_text("here")
    with pytest.raises(OutputExistsError):
        merged("base.ckpt", dry_run=True)
    merged("base.ckpt", dry_run=True, force=True)
    assert Path("base-merged.ckpt").read_text() == "here"


@pytest.mark.parametrize("output", ["out.ckpt", "out.safetensors", "out"])
def test_an_existing_output_is_refused_and_replaced_on_demand(tmp_path: Path, merged: Merge, output: str) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output=output)
    first = contents(Path(output))
    with pytest.raises(OutputExistsError, match="--force"):
        merged("base", output=output)
    assert contents(Path(output)) == first
    merge(tmp_path / "base", tmp_path / "lora.ckpt", scaling=-3, output=output, force=True)
    second = contents(Path(output))
    assert second.keys() == first.keys()
    assert second != first
    assert names_of(Path()) == with_manifest_of(output)


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path: Path, merged: Merge) -> None:
    hf_folder(tmp_path / "base", shards=3)
    merged("base", output="out")
    merged("base", output="out", force=True, max_shard_size="1GB")
    assert names_of(Path("out")) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "pet-manifest.json",
        "tokenizer.json",
    ]


@pytest.mark.parametrize("kind", ["subfolder", "no weights", "file for a folder", "folder for a file"])
def test_what_is_no_checkpoint_is_not_replaced(tmp_path: Path, merged: Merge, kind: str) -> None:
    hf_folder(tmp_path / "base")
    output = Path("out")
    if kind == "subfolder":
        merged("base", output=output)
        (output / "photos").mkdir()
    elif kind == "no weights":
        output.mkdir()
        (output / "thesis.tex").write_text("years")
    elif kind == "file for a folder":
        output.write_text("precious")
    else:
        output = Path("out.ckpt")
        output.mkdir()
    before = tree(tmp_path)
    with pytest.raises(OutputExistsError):
        merged("base", output=output, force=True)
    assert tree(tmp_path) == before


def test_an_empty_folder_is_replaced_on_demand(tmp_path: Path, merged: Merge) -> None:
    hf_folder(tmp_path / "base")
    Path("out").mkdir()
    merged("base", output="out", force=True)
    assert_all_merged(Path("out"), hugging_face(BASE), HF_TERMS)


@pytest.mark.parametrize("output", ["new/deep/out.ckpt", "new/deep/out"])
def test_missing_folders_above_the_output_are_made(tmp_path: Path, merged: Merge, output: str) -> None:
    hf_folder(tmp_path / "base")
    merged("base", output=output)
    assert_all_merged(Path(output), hugging_face(BASE), HF_TERMS)
    assert names_of(Path("new/deep")) == with_manifest_of(output)


@pytest.mark.parametrize("disguise", ["same", "relative", "hard link", "symlink", "folder", "folder above", "adapter"])
@pytest.mark.parametrize("force", [True, False])
def test_an_input_in_any_disguise_is_no_output(tmp_path: Path, merged: Merge, disguise: str, force: bool) -> None:
    (tmp_path / "models").mkdir()
    base = write(tmp_path / "models" / "base.ckpt", BASE)
    link = tmp_path / "link.ckpt"
    if disguise == "hard link":
        os.link(base, link)
    if disguise == "symlink":
        link.symlink_to(base)
    output = {
        "same": base,
        "relative": Path("../work/../models/base.ckpt"),
        "hard link": link,
        "symlink": link,
        "folder": tmp_path / "models",
        "folder above": tmp_path,
        "adapter": tmp_path / "lora.ckpt",
    }[disguise]
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"an input|the input"):
        merged("models/base.ckpt", output=output, force=force)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("output", [".", "..", "../work", "/", "out/.."])
@pytest.mark.parametrize("force", [True, False])
def test_the_working_folder_and_those_above_are_no_output(
    tmp_path: Path, merged: Merge, output: str, force: bool
) -> None:
    write(tmp_path / "base.ckpt", BASE)
    Path("notes.txt").write_text("precious")
    before = tree(tmp_path)
    with pytest.raises((UsageError, OutputExistsError)):
        merged("base.ckpt", output=output, force=force)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["tuned.safetensors", "model-00001-of-00002.safetensors", "tuned.ckpt"])
@pytest.mark.parametrize("force", [True, False])
def test_no_file_is_added_to_the_folder_of_an_input(tmp_path: Path, merged: Merge, name: str, force: bool) -> None:
    hf_folder(tmp_path / "base")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="a part of the input"):
        merged("base", output=tmp_path / "base" / name, force=force)
    assert tree(tmp_path) == before


def test_an_output_beside_single_inputs_is_fine(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    merged("base.ckpt", output=tmp_path / "merged.ckpt")
    assert_all_merged(tmp_path / "merged.ckpt", BASE, TERMS)


def test_a_dangling_link_in_the_place_of_the_output_exists(tmp_path: Path, merged: Merge) -> None:
    write(tmp_path / "base.ckpt", BASE)
    Path("out.ckpt").symlink_to("nowhere.ckpt")
    with pytest.raises(OutputExistsError):
        merged("base.ckpt", output="out.ckpt")
    merged("base.ckpt", output="out.ckpt", force=True)
    assert not Path("out.ckpt").is_symlink()
    assert not Path("nowhere.ckpt").exists()

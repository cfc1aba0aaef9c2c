"""What each option of a transform does to its output and its report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from merge_cases import (
    NUMPY,
    add_crc,
    contents,
    hugging_face,
    hugging_face_name,
    llama,
    names_of,
    random,
    save,
    tree,
    with_manifest_of,
    write,
    write_folder,
)
from rank_folders import assert_same_arrays, read_arrays, read_ranks, slices_of_rank, strategy_of, write_ranks
from transform_cases import COLUMNS, ROWS, SOURCE, TARGET, TENSORS, Held, refusal, write_case, write_strategy

from ckpt_tools import TransformReport, open_checkpoint, transform
from ckpt_tools.layout.model import Layout, Strategy
from surgery.errors import NonFiniteError, OutputExistsError


def reshard(folder: Path, source: str = "in", **options: object) -> TransformReport:
    given = {"src_strategy": folder / "src.ckpt", "dst_strategy": folder / "dst.ckpt", "output": folder / "out"}
    return transform(folder / source, **given | options)


def gathered(folder: Path, output: str, **options: object) -> TransformReport:
    return reshard(folder, dst_strategy=None, output=folder / output, **options)


def assert_resharded(folder: Path, tensors: Held = TENSORS, target: Strategy = TARGET) -> None:
    ranks = read_ranks(folder)
    assert len(ranks) == target.ranks
    for rank, held in enumerate(ranks):
        assert_same_arrays(held, slices_of_rank(tensors, target, rank))


def test_a_prefix_names_the_ranks_files(tmp_path: Path) -> None:
    write_case(tmp_path)
    report = reshard(tmp_path, prefix="llama-infer_")
    assert report.files == ("rank_0/llama-infer_0.ckpt", "rank_1/llama-infer_1.ckpt", "pet-manifest.json")
    assert_resharded(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_floats_are_cast_in_one_rounding_and_nothing_else_is(tmp_path: Path, dtype: str) -> None:
    # Halfway cases of bf16 as seen from fp64: a second rounding through fp32 would take them elsewhere.
    halfway = 1 + 2.0**-8 + 2.0**-40 * np.array([[-1, 1, 0, 3], [5, -7, 1, 1]], np.float64)
    tensors = {"w": np.concatenate([halfway, -halfway]), "v": random(0, 6), "n": np.arange(6), "mask": np.eye(2) > 0}
    layouts = {"w": COLUMNS, "v": ((0,),), "n": ((0,),), "mask": COLUMNS}
    source = strategy_of({name: Layout((2,), cut) for name, cut in layouts.items()})
    write_case(tmp_path, tensors=tensors, source=source, target=source)
    report = gathered(tmp_path, "out.safetensors", dtype=dtype)
    if dtype == "bf16":
        once = np.where(np.abs(halfway) > 1 + 2.0**-8, 1 + 2.0**-7, 1.0)
        assert np.array_equal(read_arrays(tmp_path / "out.safetensors")["w"][:2].astype(np.float64), once)
    else:
        expected = {
            name: array.astype(NUMPY[dtype]) if array.dtype.kind == "f" else array for name, array in tensors.items()
        }
        assert_same_arrays(read_arrays(tmp_path / "out.safetensors"), expected)
    assert {tensor.name: tensor.dtype for tensor in report.tensors} == {
        "w": dtype,
        "v": dtype,
        "n": "int64",
        "mask": "bool",
    }
    reshard(tmp_path, dtype=dtype)
    whole = read_arrays(tmp_path / "out.safetensors")
    assert_resharded(tmp_path / "out", whole, source)


def test_values_beyond_the_range_of_the_type_are_refused(tmp_path: Path) -> None:
    tensors = TENSORS | {"norm.weight": np.array([1, 7e4, -1e30, np.inf, np.nan, 3], np.float32)}
    write_case(tmp_path, tensors=tensors)
    for target in ("dst.ckpt", None):
        error = refusal(tmp_path, 5, dtype="fp16", dst_strategy=target)
        assert isinstance(error, NonFiniteError)
        assert "norm.weight: expected values that it can hold, found 2 elements beyond" in str(error)
    gathered(tmp_path, "out.ckpt", dtype="fp16", allow_nonfinite=True)
    assert np.isinf(read_arrays(tmp_path / "out.ckpt")["norm.weight"]).sum() == 3


@pytest.mark.parametrize("format", ["keep", "ckpt", "safetensors"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_the_format_is_kept_or_chosen(tmp_path: Path, suffix: str, format: str) -> None:
    write_case(tmp_path, suffix)
    expected = suffix[1:] if format == "keep" else format
    report = reshard(tmp_path, format=format)
    assert report.format == expected
    ranks = (f"rank_{rank}/checkpoint_{rank}.{expected}" for rank in range(2))
    assert report.files == (*ranks, "pet-manifest.json")
    assert_resharded(tmp_path / "out")
    gathered(tmp_path, "folder", format=format)
    assert open_checkpoint(tmp_path / "folder").format == expected


def test_the_suffix_of_a_whole_output_chooses_its_format(tmp_path: Path) -> None:
    write_case(tmp_path)
    assert gathered(tmp_path, "out.safetensors").format == "safetensors"
    assert_same_arrays(read_arrays(tmp_path / "out.safetensors"), TENSORS)


def llama_strategy(names: list[str], devices: int, tensors: Held) -> Strategy:
    return strategy_of({name: Layout((devices,), ((0,), *((),) * (tensors[name].ndim - 1))) for name in names})


@pytest.mark.parametrize("names", ["hf", "json"])
def test_names_are_changed_between_the_strategies(tmp_path: Path, names: str) -> None:
    tensors = llama()
    if names == "json":
        (tmp_path / "names.json").write_text(json.dumps({name: hugging_face_name(name) for name in tensors}))
    renamed = hugging_face(tensors)
    target = llama_strategy(list(renamed), 2, renamed)
    write_case(tmp_path, tensors=tensors, source=llama_strategy(list(tensors), 4, tensors), target=target)
    option = "hf" if names == "hf" else str(tmp_path / "names.json")
    report = reshard(tmp_path, names=option)
    assert_resharded(tmp_path / "out", renamed, target)
    assert [tensor.name for tensor in report.tensors] == list(renamed)


def test_a_hugging_face_folder_becomes_ranks_under_mindformers_names(tmp_path: Path) -> None:
    tensors = llama()
    write_folder(tmp_path / "hf", hugging_face(tensors))
    target = llama_strategy(list(tensors), 4, tensors)
    write_strategy(tmp_path / "dst.ckpt", target)
    report = reshard(tmp_path, "hf", src_strategy=None, names="mindformers", format="ckpt")
    assert_resharded(tmp_path / "out", tensors, target)
    assert (report.src_ranks, report.dst_ranks, report.step, report.src_strategy) == (0, 4, "", None)


def test_shards_of_a_size_have_an_index(tmp_path: Path) -> None:
    tensors = {f"{number}.weight": random(number, 8, 8) for number in range(6)}
    source = strategy_of({name: Layout((2,), COLUMNS) for name in tensors})
    write_case(tmp_path, ".safetensors", tensors=tensors, source=source, target=source)
    report = gathered(tmp_path, "out", max_shard_size="600B")
    assert len(report.files) == 5
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    assert set(index["weight_map"]) == set(tensors)
    assert_same_arrays(read_arrays(tmp_path / "out"), tensors)


@pytest.mark.parametrize("kind", ["whole.ckpt", "whole.safetensors", "shards-ckpt", "shards-safetensors"])
def test_every_kind_of_whole_source_becomes_ranks_and_whole_again(tmp_path: Path, kind: str) -> None:
    write_case(tmp_path)
    write(tmp_path / kind, dict(TENSORS))
    reshard(tmp_path, kind, src_strategy=None)
    assert_resharded(tmp_path / "out")
    transform(tmp_path / "out", src_strategy=tmp_path / "dst.ckpt", output=tmp_path / "back.safetensors")
    assert_same_arrays(read_arrays(tmp_path / "back.safetensors"), TENSORS)
    transform(tmp_path / kind, output=tmp_path / "copy.ckpt")
    assert_same_arrays(read_arrays(tmp_path / "copy.ckpt"), TENSORS)


@pytest.mark.parametrize(
    ("source", "is_sharded", "expected"),
    [
        ("in", False, "in-transformed"),
        ("in", True, "in-transformed"),
        ("whole.ckpt", False, "whole-transformed.ckpt"),
        ("whole.ckpt", True, "whole-transformed"),
        ("weights.bin", False, "weights-transformed.ckpt"),
        ("shards-ckpt", False, "shards-ckpt-transformed"),
        ("shards-ckpt", True, "shards-ckpt-transformed"),
    ],
)
def test_the_output_has_a_default_name_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, is_sharded: bool, expected: str
) -> None:
    write_case(tmp_path)
    write(tmp_path / "shards-ckpt", dict(TENSORS))
    save(tmp_path / "whole.ckpt", TENSORS)
    (tmp_path / "weights.bin").write_bytes((tmp_path / "whole.ckpt").read_bytes())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    options = {"output": None, "src_strategy": tmp_path / "src.ckpt" if source == "in" else None}
    report = reshard(tmp_path, source, **options | ({} if is_sharded else {"dst_strategy": None}))
    assert report.output == expected
    assert names_of(Path()) == with_manifest_of(expected)
    (assert_resharded if is_sharded else lambda path: assert_same_arrays(read_arrays(path), TENSORS))(Path(expected))


def test_an_earlier_output_is_replaced_on_demand_only(tmp_path: Path) -> None:
    write_case(tmp_path)
    reshard(tmp_path, prefix="old_")
    before = tree(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="--force"):
        reshard(tmp_path)
    assert tree(tmp_path / "out") == before
    reshard(tmp_path, force=True)
    assert names_of(tmp_path / "out" / "rank_0") == ["checkpoint_0.ckpt"]
    assert_resharded(tmp_path / "out")


@pytest.mark.parametrize("kind", ["photos", "no weights", "folder in a rank", "file"])
def test_what_is_no_output_is_never_replaced(tmp_path: Path, kind: str) -> None:
    write_case(tmp_path)
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("thesis")
    else:
        reshard(tmp_path)
        (out / {"photos": "photos", "no weights": ".", "folder in a rank": "rank_0/more"}[kind]).mkdir(exist_ok=True)
    if kind == "no weights":
        for path in out.rglob("*.ckpt"):
            path.rename(path.with_suffix(".txt"))
    refusal(tmp_path, 8, force=True)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("target", ["dst.ckpt", None])
@pytest.mark.parametrize("options", [{}, {"dtype": "fp16"}, {"format": "safetensors"}], ids=str)
def test_a_dry_run_writes_nothing_and_foretells_the_run(
    tmp_path: Path, suffix: str, target: str | None, options: dict[str, object]
) -> None:
    write_case(tmp_path, suffix)
    if suffix == ".ckpt":
        for file in (tmp_path / "in").rglob("*.ckpt"):
            add_crc(file)
    options |= {"dst_strategy": target and tmp_path / target}
    before = tree(tmp_path)
    dry = reshard(tmp_path, dry_run=True, **options)
    assert tree(tmp_path) == before
    report = reshard(tmp_path, **options)
    assert dry.dry_run
    written = contents(tmp_path / "out")
    assert dry.bytes_written == sum(len(data) for data in written.values())
    same = {"dry_run": True, "seconds": 0.0, "free_disk_bytes": 0, "crc_checked": ()}
    assert replace(dry, **same) == replace(report, **same)
    if suffix == ".ckpt" and not options.get("format"):
        assert all(open_checkpoint(file).crc for file in (tmp_path / "out").rglob("*.ckpt"))


def test_a_report_adds_up(tmp_path: Path) -> None:
    write_case(tmp_path)
    report = reshard(tmp_path)
    assert (report.src_ranks, report.dst_ranks, report.step) == (4, 2, "3_2")
    assert report.source == str(tmp_path / "in")
    assert (report.src_strategy, report.dst_strategy) == (str(tmp_path / "src.ckpt"), str(tmp_path / "dst.ckpt"))
    parts = {tensor.name: (tensor.shape, tensor.dtype, tensor.src_parts, tensor.dst_parts) for tensor in report.tensors}
    assert parts == {
        "embedding.weight": ((8, 4), "bf16", (2, 1), (1, 2)),
        "layer.weight": ((4, 8), "bf16", (1, 2), (2, 1)),
        "norm.weight": ((6,), "fp32", (1,), (2,)),
        "global_step": ((), "int32", (), ()),
    }
    # Each element is read from one of the ranks that hold it, whatever the number of them.
    assert report.bytes_read == sum(array.nbytes for array in TENSORS.values())
    assert report.bytes_written == sum(len(data) for data in contents(tmp_path / "out").values())
    assert (report.dropped, report.missing, report.warnings, report.resumed) == ((), (), (), ())
    assert math.isfinite(report.seconds)
    assert json.loads(report.to_json())["command"] == "transform"


def test_optimizer_states_are_dropped_where_the_target_has_no_place_for_them(tmp_path: Path) -> None:
    states = {f"adam_m.{name}": array for name, array in TENSORS.items() if name.endswith("weight")}
    source = strategy_of(SOURCE.stages[0] | {f"adam_m.{name}": layout for name, layout in SOURCE.stages[0].items()})
    write_case(tmp_path, tensors=TENSORS | states, source=source)
    report = reshard(tmp_path)
    assert sorted(report.dropped) == sorted(states)
    assert_resharded(tmp_path / "out")
    gathered(tmp_path, "all.ckpt")
    assert_same_arrays(read_arrays(tmp_path / "all.ckpt"), TENSORS | states)


def test_optimizer_states_that_the_source_lacks_are_reported(tmp_path: Path) -> None:
    target = strategy_of(TARGET.stages[0] | {"adam_v.layer.weight": Layout((2,), ROWS)})
    write_case(tmp_path, target=target)
    assert reshard(tmp_path).missing == ("adam_v.layer.weight",)
    assert_resharded(tmp_path / "out")


def test_what_the_target_may_lack_or_miss_is_said_by_pattern(tmp_path: Path) -> None:
    layouts = dict(TARGET.stages[0])
    layouts["lora.a"] = layouts.pop("layer.weight")
    write_case(tmp_path, target=strategy_of(layouts))
    refusal(tmp_path, 5, allow_missing=["lora.*"])
    refusal(tmp_path, 5, allow_unused=["layer.*"])
    report = reshard(tmp_path, allow_missing=["lora.*"], allow_unused=["layer.*"])
    assert (report.dropped, report.missing) == (("layer.weight",), ("lora.a",))
    assert_resharded(tmp_path / "out", {name: array for name, array in TENSORS.items() if name != "layer.weight"})


def test_scalars_of_one_stage_go_to_all_ranks(tmp_path: Path) -> None:
    scalars = {"global_step": np.array(7, np.int32), "learning_rate": np.array(0.1, np.float32)}
    stages = [{"embedding.weight": Layout((1,), COLUMNS)}, {"layer.weight": Layout((1,), COLUMNS)}]
    tensors = {name: TENSORS[name] for name in ("embedding.weight", "layer.weight")} | scalars

    def change(rank: int, held: Held) -> None:
        if rank == 0:
            del held["learning_rate"]

    target = strategy_of({name: TARGET.stages[0][name] for name in list(tensors)[:2]})
    write_strategy(tmp_path / "src", strategy_of(*stages))
    write_strategy(tmp_path / "dst.ckpt", target)
    write_ranks(tmp_path / "in", tensors, strategy_of(*stages), change=change)
    reshard(tmp_path, src_strategy=tmp_path / "src")
    assert_resharded(tmp_path / "out", tensors, target)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("dtype", ["keep", "fp16"])
def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path, suffix: str, dtype: str) -> None:
    tensors = {f"{n}.weight": random(n, 64, 48, dtype="bf16") for n in range(5)} | {"bias": random(9, 48)}
    source = strategy_of({name: Layout((2, 2), (*((),) * (array.ndim - 1), (0, 1))) for name, array in tensors.items()})
    target = strategy_of({name: Layout((3, 2), ((0,), *((),) * (array.ndim - 1))) for name, array in tensors.items()})
    write_case(tmp_path, suffix, tensors=tensors, source=source, target=target)
    outputs = []
    for threads, memory in ((1, None), (2, None), (4, None), (2, "110MB")):
        output = tmp_path / f"{threads}-{memory}"
        reshard(tmp_path, threads=threads, max_memory=memory, output=output, dtype=dtype)
        outputs.append(contents(output))
    assert outputs[1:] == outputs[:1] * 3


def test_metadata_of_safetensors_is_kept_and_says_where_it_came_from(tmp_path: Path) -> None:
    write_strategy(tmp_path / "src.ckpt", SOURCE)
    write_strategy(tmp_path / "dst.ckpt", TARGET)
    metadata = {"format": "ms", "remove_redundancy": "False", "note": "größer"}
    write_ranks(tmp_path / "in", TENSORS, SOURCE, "x_rank_{}-3_2.safetensors".format, metadata=metadata)
    reshard(tmp_path)
    gathered(tmp_path, "whole.safetensors")
    files = [tmp_path / "whole.safetensors", *(tmp_path / "out").rglob("*.safetensors")]
    assert len(files) == 3
    for file in files:
        found = dict(open_checkpoint(file).metadata)
        assert found.pop("pet_surgery.version")
        expected = {"format": "ms", "note": "größer", "pet_surgery.source": "in", "pet_surgery.step": "3_2"}
        assert (found.pop("pet_surgery.manifest", None) is not None) == (file.parent == tmp_path)
        assert found == expected


def test_inputs_are_left_as_they_were(tmp_path: Path) -> None:
    write_case(tmp_path)
    before = tree(tmp_path)
    reshard(tmp_path)
    gathered(tmp_path, "whole.ckpt")
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before

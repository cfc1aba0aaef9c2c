"""`ranks`: parts of an output, as the tasks of a job array write them, and the call that publishes all of it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from merge_cases import BASE, PAIRS, contents, mindpet, names_of, random, save
from rank_folders import strategy_of
from transform_cases import COLUMNS, ROWS, SOURCE, refusal, write_case, write_strategy

from ckpt_tools import merge, transform
from ckpt_tools.layout.model import Layout
from surgery.errors import MismatchError, NonFiniteError, OutputExistsError

EIGHT = strategy_of(
    {
        "embedding.weight": Layout((2, 4), ROWS),
        "layer.weight": Layout((8,), COLUMNS),
        "norm.weight": Layout((8,), ((),)),
    }
)
KEPT = ".out.pet-surgery"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four ranks in `in`, a strategy for eight, and what a single call makes of them in `expected`."""
    write_case(tmp_path, target=EIGHT)
    transform(tmp_path / "in", **strategies(tmp_path), output=tmp_path / "expected")
    return tmp_path


def strategies(folder: Path) -> dict[str, Path]:
    return {"src_strategy": folder / "src.ckpt", "dst_strategy": folder / "dst.ckpt"}


def run(folder: Path, ranks: str | None, **options: object):  # type: ignore[no-untyped-def]
    return transform(folder / "in", **{**strategies(folder), "output": folder / "out", "ranks": ranks, **options})


def test_parts_and_a_last_call_make_what_one_call_makes(folder: Path) -> None:
    for ranks in ("0-2", "3", "5-7", "4"):
        report = run(folder, ranks)
        assert report.ranks == ranks
        assert not (folder / "out").exists()
    last = run(folder, None)
    assert (last.ranks, len(last.resumed)) == (None, 8)
    assert contents(folder / "out") == contents(folder / "expected")
    assert KEPT not in names_of(folder)


def test_the_last_call_writes_what_no_part_wrote(folder: Path) -> None:
    run(folder, "0,6")
    last = run(folder, None)
    assert last.resumed == ("rank_0/checkpoint_0.ckpt", "rank_6/checkpoint_6.ckpt")
    assert contents(folder / "out") == contents(folder / "expected")


def test_a_part_that_runs_again_finds_its_files_done(folder: Path) -> None:
    assert run(folder, "0-3").resumed == ()
    assert run(folder, "2-4").resumed == ("rank_2/checkpoint_2.ckpt", "rank_3/checkpoint_3.ckpt")


def test_parts_may_run_at_the_same_time_and_overlap(folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda ranks: run(folder, ranks, threads=1), ["0-3", "2-5", "4-7", "0-7"]))
    assert len(run(folder, None).resumed) == 8
    assert contents(folder / "out") == contents(folder / "expected")


def test_the_report_and_the_dry_run_are_of_the_part_alone(folder: Path) -> None:
    planned = run(folder, "1-2", dry_run=True)
    assert KEPT not in names_of(folder)
    written = run(folder, "1-2")
    for report in (planned, written):
        assert report.files == ("rank_1/checkpoint_1.ckpt", "rank_2/checkpoint_2.ckpt")
        sizes = [(folder / "expected" / name).stat().st_size for name in report.files]
        assert report.bytes_written == sum(sizes)
    assert planned.bytes_read < run(folder, None, dry_run=True).bytes_read


def test_what_a_part_reads_is_foretold_to_the_byte(folder: Path) -> None:
    """A quarter of the embedding (8 x 4 bf16), an eighth of the layer (4 x 8 bf16), the norm (6 fp32) and the step."""
    assert run(folder, "0", dry_run=True).bytes_read == 64 // 4 + 64 // 8 + 24 + 4
    assert run(folder, "0-1", dry_run=True).bytes_read == 64 // 2 + 64 // 4 + 24 + 4


def test_other_arguments_do_not_mix_with_parts_that_are_there(folder: Path) -> None:
    run(folder, "0-3")
    with pytest.raises(OutputExistsError, match="completed for other arguments, other inputs or another version"):
        run(folder, None, dtype="fp32")
    with pytest.raises(OutputExistsError, match="start anew with --force"):
        run(folder, "4-7", dtype="fp32")
    run(folder, "4-7")
    assert len(run(folder, None).resumed) == 8


def test_a_source_that_changed_between_the_parts_is_another(folder: Path) -> None:
    run(folder, "0-3")
    os.utime(folder / "in" / "rank_0" / "llama_rank_0-3_2.ckpt", ns=(1, 1))
    with pytest.raises(OutputExistsError, match="other inputs"):
        run(folder, "4-7")


def test_an_existing_output_is_replaced_by_the_last_call_alone(folder: Path) -> None:
    run(folder, None, dtype="fp32")
    before = contents(folder / "out")
    with pytest.raises(OutputExistsError, match="it exists already"):
        run(folder, "0-3")
    run(folder, "0-3", force=True)
    assert contents(folder / "out") == before
    run(folder, None, force=True)
    assert contents(folder / "out") == contents(folder / "expected")


def test_a_value_that_a_part_cannot_hold_is_refused_there_and_by_the_last_call(tmp_path: Path) -> None:
    tensors = {"embedding.weight": random(0, 8, 4, size=1e6), "layer.weight": random(1, 8, 8)}
    target = strategy_of({"embedding.weight": Layout((2,), ROWS), "layer.weight": Layout((2,), COLUMNS)})
    source = strategy_of({name: SOURCE.stages[0][name] for name in tensors})
    write_case(tmp_path, tensors=tensors, source=source, target=target)
    for ranks in ("0", None):
        with pytest.raises(NonFiniteError, match=r"embedding\.weight: .*beyond the range of fp16"):
            run(tmp_path, ranks, dtype="fp16")


def test_an_iteration_is_written_in_parts_and_gets_its_metadata_from_the_last_call(folder: Path) -> None:
    transform(folder / "in", **strategies(folder), output=folder / "whole", format="iteration")
    run(folder, "0-3", format="iteration")
    run(folder, "4-7", format="iteration")
    assert not list((folder / KEPT).rglob("metadata.json"))
    last = run(folder, None, format="iteration")
    assert len(last.resumed) == len([name for name in last.files if name.endswith(".safetensors")])
    assert contents(folder / "out") == contents(folder / "whole")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ranks": "0-8"}, "expected ranks of 0-7, as in --dst-strategy"),
        ({"ranks": "x"}, "expected ranks such as 0-63"),
        ({"ranks": "0", "dst_strategy": None}, "Give --dst-strategy"),
    ],
)
def test_ranks_that_cannot_be_are_refused(folder: Path, options: dict[str, object], says: str) -> None:
    assert says in str(refusal(folder, 2, **options))


def test_a_merge_is_written_in_parts_too_and_reports_all_weights_at_the_end(tmp_path: Path) -> None:
    save(tmp_path / "base.ckpt", BASE)
    save(tmp_path / "lora.ckpt", mindpet(PAIRS))
    layouts = {name: Layout((4,), ROWS if array.ndim == 2 else ((),)) for name, array in BASE.items()}
    write_strategy(tmp_path / "dst.ckpt", strategy_of(layouts))
    given = {"alpha": 8, "dst_strategy": tmp_path / "dst.ckpt"}
    inputs = (tmp_path / "base.ckpt", tmp_path / "lora.ckpt")
    expected = merge(*inputs, **given, output=tmp_path / "expected")
    for ranks in ("0-1", range(2, 4)):
        part = merge(*inputs, **given, output=tmp_path / "out", ranks=ranks)
        assert part.weights[0].delta_norm != expected.weights[0].delta_norm
    last = merge(*inputs, **given, output=tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    # The norms are sums of squares of all ranks' rows, in whatever pieces.
    assert last.weights[0].delta_norm == pytest.approx(expected.weights[0].delta_norm, rel=1e-6)
    with pytest.raises(MismatchError):
        merge(*inputs, dst_strategy=tmp_path / "dst.ckpt", output=tmp_path / "out", ranks="0")

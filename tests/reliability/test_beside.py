"""A file and what lies beside it get their places one after the other: no reader takes the one for the other run's."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_cases import factors, mindpet, random, save
from tracing import Action, Call, Kill, run_traced

from ckpt_tools import inspect_checkpoint, merge, open_checkpoint, split
from ckpt_tools.verifying import verify_output
from surgery.errors import InputChangedError

LAYER = "model.layers.0.attention.wq"
WEIGHTS = {f"{LAYER}.weight": random(1, 16, 16)}


def write_inputs(folder: Path) -> None:
    (folder / "out").mkdir()
    save(folder / "base.ckpt", WEIGHTS)
    for number in (1, 2):
        save(folder / f"combined-{number}.ckpt", WEIGHTS | mindpet(factors([LAYER], seed=number)))


def test_a_manifest_beside_a_file_of_another_run_is_told_apart_from_a_broken_file(tmp_path: Path) -> None:
    """What is verified at every call of a run that replaces both is either sound or on its way, and never broken."""
    write_inputs(tmp_path)
    out = tmp_path / "out" / "out.ckpt"
    merge(tmp_path / "combined-1.ckpt", alpha=8, output=out)
    unsettled: list[str] = []

    def look(call: Call) -> Action:
        try:
            verify_output(out)
        except InputChangedError as error:
            unsettled.append(str(error))
            assert any("maybe not that of" in warning for warning in inspect_checkpoint(out).warnings)
        return None

    ended = run_traced(
        lambda: merge(tmp_path / "combined-2.ckpt", alpha=8, output=out, force=True),
        tmp_path / "out",
        tmp_path / "log",
        look,
    )
    assert ended.code == 0, ended.err
    assert unsettled, "the moment was not met: the test proves nothing"
    for message in unsettled:
        assert message.startswith(
            f"{out.with_name('out.pet-manifest.json')}: expected both of one run, found maybe not"
        )
        assert message.endswith("Wait for that run; if none is at work, run it again.")
    verify_output(out)
    assert not any("maybe not" in warning for warning in inspect_checkpoint(out).warnings)


def test_a_configuration_beside_an_adapter_of_another_run_gives_no_alpha(tmp_path: Path) -> None:
    """Such an adapter would be merged with another run's scale, without a word."""
    write_inputs(tmp_path)
    out = tmp_path / "out" / "lora.ckpt"
    split(tmp_path / "combined-1.ckpt", alpha=8, output=out)
    bytes_of = {8.0: out.read_bytes()}
    split(tmp_path / "combined-2.ckpt", alpha=16, output=tmp_path / "other.ckpt")
    bytes_of[16.0] = (tmp_path / "other.ckpt").read_bytes()
    unsettled = []

    def look(call: Call) -> Action:
        try:
            (weight,) = merge(tmp_path / "base.ckpt", out, output=tmp_path / "merged.ckpt", dry_run=True).weights
        except InputChangedError as error:
            unsettled.append(str(error))
        else:
            assert out.read_bytes() == bytes_of[weight.adapters[0].alpha]
        return None

    ended = run_traced(
        lambda: split(tmp_path / "combined-2.ckpt", alpha=16, output=out, force=True),
        tmp_path / "out",
        tmp_path / "log",
        look,
    )
    assert ended.code == 0, ended.err
    assert unsettled, "the moment was not met: the test proves nothing"


def test_a_run_that_was_killed_between_the_two_is_told_of_until_it_is_run_again(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    out = tmp_path / "out" / "out.ckpt"
    merge(tmp_path / "combined-1.ckpt", alpha=8, output=out)

    def again() -> None:
        merge(tmp_path / "combined-2.ckpt", alpha=8, output=out, force=True)

    def kill(call: Call) -> Action:
        return Kill() if call.name.startswith("rename") and call.paths[-1].endswith("out.ckpt") and seen else note(call)

    seen: list[str] = []

    def note(call: Call) -> None:
        if call.name.startswith("rename") and "pet-manifest" in call.paths[-1]:
            seen.append(call.paths[-1])

    assert run_traced(again, tmp_path / "out", tmp_path / "log", kill).code != 0
    assert seen
    with pytest.raises(InputChangedError, match="was killed at it"):
        verify_output(out)
    assert open_checkpoint(out).tensors  # it is whole all the same
    again()
    verify_output(out)

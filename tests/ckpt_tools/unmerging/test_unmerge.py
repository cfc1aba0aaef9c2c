"""What merging took from a base comes back, bit for bit, or nothing does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_cases import (
    HIDDEN,
    INNER,
    NUMPY,
    RANK,
    VOCABULARY,
    Arrays,
    factors,
    hf_folder,
    hugging_face,
    llama,
    mindpet,
    names_of,
    peft,
    random,
    read,
    save,
    write,
    write_peft,
)

from ckpt_tools import merge, unmerge
from ckpt_tools.patching import read_patch
from ckpt_tools.writing.atomic import Workspace
from ckpt_tools.writing.claims import claim_output
from surgery.errors import (
    CorruptInputError,
    InputMissingError,
    MismatchError,
    OutputExistsError,
    UnknownFormatError,
    UsageError,
    VerificationError,
)


def assert_same_bits(found: Arrays, base: Arrays) -> None:
    assert list(found) == list(base)
    for name, weight in base.items():
        assert (found[name].dtype, found[name].shape) == (weight.dtype, weight.shape), name
        assert found[name].tobytes() == weight.tobytes(), name


def round_trip(folder: Path, base: Arrays, *adapters: Path, suffix: str = ".ckpt", **options: object) -> float:
    """Merge, undo, compare; the patch's share of the base."""
    write(folder / f"base{suffix}", base)
    patch = folder / "patch"
    options = {"scaling": 2.0, **options}
    if any(adapter.is_dir() for adapter in adapters):
        del options["scaling"]
    report = merge(
        *(folder / f"base{suffix}", *adapters), output=folder / f"merged{suffix}", unmerge_patch=patch, **options
    )  # type: ignore[arg-type]
    undone = unmerge(folder / f"merged{suffix}", *adapters, patch=patch, output=folder / f"back{suffix}")
    assert undone.restored == tuple(base)
    assert_same_bits(read(folder / f"back{suffix}"), base)
    assert report.unmerge_patch_bytes == patch.stat().st_size
    return report.unmerge_patch_share or 0.0


def lora(path: Path, seed: int = 1000, dtype: str = "fp32") -> Path:
    return write(path, mindpet(factors(seed=seed, dtype=dtype)))


@pytest.mark.parametrize("target", ["keep", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("dtype", NUMPY)
def test_every_type_comes_back_from_every_type(tmp_path: Path, dtype: str, target: str) -> None:
    round_trip(tmp_path, {**llama(dtype), "steps": np.arange(3)}, lora(tmp_path / "lora.ckpt"), dtype=target)


@pytest.mark.parametrize("dtype", NUMPY)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_values_come_back(tmp_path_factory: pytest.TempPathFactory, dtype: str, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("case")
    rows, columns = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40))
    rank, seed = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    size = NUMPY[dtype](0).itemsize
    # Any bits: NaN of all kinds, Inf, denormals, zeros of both signs.
    weight = generator.integers(0, 256, (rows, columns * size), np.uint8).view(NUMPY[dtype])
    plain = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 1e6]))
    weight = np.where(generator.random(weight.shape) < 0.5, weight, (generator.normal(0, 1, weight.shape) * plain))
    with np.errstate(all="ignore"):
        base = {"a.weight": weight.astype(NUMPY[dtype])}
    a, b = (random(seed % 1000, *shape, size=plain or 1.0) for shape in ((rank, columns), (rows, rank)))
    if data.draw(st.booleans()):
        a[0, 0] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e38]))
    write(folder / "lora.ckpt", {"a.lora_a": a, "a.lora_b": b})
    scaling = data.draw(st.sampled_from([1e-30, 0.3, 2.0, -1e20]))
    target = data.draw(st.sampled_from(["keep", "bf16", "fp32"]))
    with np.errstate(all="ignore"):
        round_trip(folder, base, folder / "lora.ckpt", scaling=scaling, allow_nonfinite=True, dtype=target)


def test_a_small_delta_leaves_a_patch_of_a_few_percent(tmp_path: Path) -> None:
    base = {"a.weight": random(0, 600, 2048, dtype="bf16", size=0.02)}
    adapter = {"a.lora_a": random(1, 8, 2048, size=0.01), "a.lora_b": random(2, 600, 8, size=0.01)}
    write(tmp_path / "lora.ckpt", adapter)
    assert round_trip(tmp_path, base, tmp_path / "lora.ckpt") < 0.03


def test_several_adapters_on_one_weight_come_off_in_any_order(tmp_path: Path) -> None:
    one, two = lora(tmp_path / "one.ckpt"), lora(tmp_path / "two.safetensors", seed=7)
    round_trip(tmp_path, llama(), one, two, scaling=[2.0, -0.7])
    unmerge(tmp_path / "merged.ckpt", two, one, patch=tmp_path / "patch", output=tmp_path / "again.ckpt")
    assert_same_bits(read(tmp_path / "again.ckpt"), llama())


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_experts_come_back(tmp_path: Path, dtype: str) -> None:
    weight = "model.layers.0.mlp.experts.weight1"
    base = {weight: random(0, 3, HIDDEN, INNER, dtype=dtype)}
    a, b = random(2, 3, HIDDEN, RANK), random(3, 3, RANK, INNER)
    write(tmp_path / "lora.ckpt", {f"{weight}_lora_a": a, f"{weight}_lora_b": b})
    round_trip(tmp_path, base, tmp_path / "lora.ckpt")
    assert read_patch(tmp_path / "patch").facts.tensors[0].terms


def test_an_embedding_comes_back(tmp_path: Path) -> None:
    prefix = "base_model.model.model.embed_tokens"
    adapter = {
        f"{prefix}.lora_embedding_A": random(2, RANK, VOCABULARY),
        f"{prefix}.lora_embedding_B": random(3, HIDDEN, RANK),
    }
    folder = write_peft(tmp_path / "lora", adapter, target_modules=["embed_tokens"])
    round_trip(tmp_path, hugging_face(llama()), folder, suffix=".safetensors")
    assert read_patch(tmp_path / "patch").facts.tensors[0].terms[0].left.is_transposed


def test_a_convolution_comes_back(tmp_path: Path) -> None:
    base = {"conv.weight": random(0, 96, 192, 3, 3, dtype="bf16")}
    prefix = "base_model.model.conv"
    adapter = {
        f"{prefix}.lora_A.weight": random(1, RANK, 192, 3, 3),
        f"{prefix}.lora_B.weight": random(2, 96, RANK, 1, 1),
    }
    folder = write_peft(tmp_path / "lora", adapter, target_modules=["conv"])
    assert round_trip(tmp_path, base, folder, suffix=".safetensors") < 0.5


@pytest.mark.parametrize("dtype", NUMPY)
def test_dora_comes_off_by_the_factors_that_the_patch_keeps(tmp_path: Path, dtype: str) -> None:
    base, pairs = hugging_face(llama(dtype)), peft(factors())
    vectors = {
        name.replace("lora_A.weight", "lora_magnitude_vector"): np.abs(random(5, HIDDEN)) + 0.1
        for name in pairs
        if "lora_A" in name
    }
    folder = write_peft(tmp_path / "lora", {**pairs, **vectors}, use_dora=True)
    round_trip(tmp_path, base, folder, suffix=".safetensors")
    assert len(read_patch(tmp_path / "patch").factors) == len(vectors)


def test_a_replaced_weight_comes_back(tmp_path: Path) -> None:
    head = random(9, VOCABULARY, HIDDEN)
    adapter = {**peft(factors()), "base_model.model.lm_head.weight": head}
    folder = write_peft(tmp_path / "lora", adapter, modules_to_save=["lm_head"])
    round_trip(tmp_path, hugging_face(llama()), folder, suffix=".safetensors")


def test_a_tied_base_comes_back_with_its_own_configuration(tmp_path: Path) -> None:
    base = hf_folder(tmp_path / "base", tie_word_embeddings=True)
    config = base / "config.json"
    config.write_bytes(config.read_bytes() + b"\r\n")
    arrays = hugging_face(llama())
    del arrays["lm_head.weight"]
    for path in base.glob("*.safetensors*"):
        path.unlink()
    save(base / "model.safetensors", arrays, {"format": "pt"})
    adapter = {
        "base_model.model.lm_head.lora_A.weight": random(1, RANK, HIDDEN),
        "base_model.model.lm_head.lora_B.weight": random(2, VOCABULARY, RANK),
    }
    folder = write_peft(tmp_path / "lora", adapter, target_modules=["lm_head"])
    merge(base, folder, output=tmp_path / "merged", unmerge_patch=tmp_path / "patch")
    assert "lm_head.weight" in read(tmp_path / "merged")
    unmerge(tmp_path / "merged", folder, patch=tmp_path / "patch", output=tmp_path / "back")
    for path in base.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_tied_base_without_a_configuration_comes_back(tmp_path: Path) -> None:
    base = {name: array for name, array in llama().items() if name != "lm_head.weight"}
    write(tmp_path / "base.ckpt", base)
    adapter = tmp_path / "lora.ckpt"
    a, b = random(1, RANK, HIDDEN), random(2, VOCABULARY, RANK)
    save(adapter, {"lm_head.mindpet_delta_lora_a": a, "lm_head.mindpet_delta_lora_b": b})
    merge(tmp_path / "base.ckpt", adapter, scaling=1, output=tmp_path / "m.ckpt", unmerge_patch=tmp_path / "patch")
    assert "lm_head.weight" in read(tmp_path / "m.ckpt")
    unmerge(tmp_path / "m.ckpt", adapter, patch=tmp_path / "patch", output=tmp_path / "back.ckpt")
    assert (tmp_path / "back.ckpt").read_bytes() == (tmp_path / "base.ckpt").read_bytes()


def test_names_that_the_merge_changed_come_back(tmp_path: Path) -> None:
    round_trip(tmp_path, llama(), lora(tmp_path / "lora.ckpt"), names="hf")


def test_optimizer_states_are_named_as_not_restored(tmp_path: Path) -> None:
    base = {**llama(), "adam_m.lm_head.weight": np.zeros(3, np.float32)}
    adapter = lora(tmp_path / "lora.ckpt")
    write(tmp_path / "base.ckpt", base)
    merge(tmp_path / "base.ckpt", adapter, scaling=2, output=tmp_path / "m.ckpt", unmerge_patch=tmp_path / "patch")
    report = unmerge(tmp_path / "m.ckpt", adapter, patch=tmp_path / "patch", output=tmp_path / "b.ckpt")
    assert [(entry.name, entry.source) for entry in report.dropped] == [("adam_m.lm_head.weight", "base.ckpt")]
    assert_same_bits(read(tmp_path / "b.ckpt"), llama())


def test_a_combined_checkpoint_is_undone_with_its_adapter_alone(tmp_path: Path) -> None:
    pairs = mindpet(factors())
    write(tmp_path / "both.ckpt", {**llama(), **pairs})
    write(tmp_path / "lora.safetensors", pairs)
    merge(tmp_path / "both.ckpt", scaling=2, output=tmp_path / "m.ckpt", unmerge_patch=tmp_path / "patch")
    unmerge(tmp_path / "m.ckpt", tmp_path / "lora.safetensors", patch=tmp_path / "patch", output=tmp_path / "b.ckpt")
    assert_same_bits(read(tmp_path / "b.ckpt"), llama())


def test_an_adapter_in_another_spelling_will_do_since_content_counts(tmp_path: Path) -> None:
    round_trip(tmp_path, llama(), lora(tmp_path / "lora.ckpt"))
    other = write_peft(tmp_path / "peft", peft(factors()))
    unmerge(tmp_path / "merged.ckpt", other, patch=tmp_path / "patch", output=tmp_path / "other.safetensors")
    assert_same_bits(read(tmp_path / "other.safetensors"), llama())


def test_the_merged_model_may_have_other_shards_and_another_format(tmp_path: Path) -> None:
    adapter = lora(tmp_path / "lora.ckpt")
    round_trip(tmp_path, llama(), adapter)
    write(tmp_path / "shards-safetensors", read(tmp_path / "merged.ckpt"))
    unmerge(tmp_path / "shards-safetensors", adapter, patch=tmp_path / "patch", output=tmp_path / "b.ckpt")
    assert_same_bits(read(tmp_path / "b.ckpt"), llama())


def test_the_same_patch_comes_from_any_number_of_threads_and_any_memory(tmp_path: Path) -> None:
    base = {"a.weight": random(0, 900, 2100, dtype="bf16"), "b.weight": random(1, 7, 5, dtype="bf16")}
    write(tmp_path / "lora.ckpt", {"a.lora_a": random(2, 8, 2100), "a.lora_b": random(3, 900, 8)})
    write(tmp_path / "base.ckpt", base)
    files = {
        (tmp_path / f"patch-{threads}-{memory}")
        for threads in (1, 3)
        for memory in ("98MiB", "1GiB")
        if merge(
            *(tmp_path / "base.ckpt", tmp_path / "lora.ckpt"),
            scaling=2,
            output=tmp_path / "merged.ckpt",
            unmerge_patch=tmp_path / f"patch-{threads}-{memory}",
            threads=threads,
            max_memory=memory,
            force=True,
        )
    }
    assert len({path.read_bytes() for path in files}) == 1
    unmerge(
        *(tmp_path / "merged.ckpt", tmp_path / "lora.ckpt"),
        patch=files.pop(),
        output=tmp_path / "b.ckpt",
        max_memory="98MiB",
    )
    assert_same_bits(read(tmp_path / "b.ckpt"), base)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with base.ckpt, lora.ckpt, merged.ckpt and patch."""
    lora(tmp_path / "lora.ckpt")
    write(tmp_path / "base.ckpt", llama())
    merge(
        *(tmp_path / "base.ckpt", tmp_path / "lora.ckpt"),
        scaling=2,
        output=tmp_path / "merged.ckpt",
        unmerge_patch=tmp_path / "patch",
    )
    return tmp_path


def undo(folder: Path, *adapters: str, merged: str = "merged.ckpt") -> None:
    unmerge(
        folder / merged,
        *(folder / adapter for adapter in adapters or ("lora.ckpt",)),
        patch=folder / "patch",
        output=folder / "back.ckpt",
    )


def test_another_merged_model_is_refused(made: Path) -> None:
    with pytest.raises(MismatchError, match=r"expected the merged model, with pet-fp1"):
        undo(made, merged="base.ckpt")


def test_a_model_without_a_tensor_is_refused(made: Path) -> None:
    arrays = read(made / "merged.ckpt")
    del arrays["lm_head.weight"]
    write(made / "less.ckpt", arrays)
    with pytest.raises(MismatchError, match=r"found no lm_head.weight"):
        undo(made, merged="less.ckpt")


def test_another_adapter_is_refused_and_what_is_missing_is_named(made: Path) -> None:
    lora(made / "other.ckpt", seed=3)
    with pytest.raises(MismatchError) as caught:
        undo(made, "other.ckpt")
    assert len(caught.value.problems) == 2
    assert "an adapter that was not merged" in str(caught.value)
    assert "the adapter lora.ckpt" in str(caught.value)


def test_an_adapter_too_many_is_refused(made: Path) -> None:
    lora(made / "other.ckpt", seed=3)
    with pytest.raises(MismatchError, match=r"other.ckpt: expected one of lora.ckpt"):
        undo(made, "lora.ckpt", "other.ckpt")


def test_a_merged_model_that_was_changed_between_the_samples_is_found_before_anything_appears(made: Path) -> None:
    arrays = read(made / "merged.ckpt")
    weight = arrays["lm_head.weight"].copy()
    weight[1, 3] += 1
    write(made / "changed.ckpt", {**arrays, "lm_head.weight": weight})
    before = names_of(made)
    with pytest.raises(VerificationError, match=r"lm_head.weight, chunk 0: expected the base's, bit for bit"):
        undo(made, merged="changed.ckpt")
    assert names_of(made) == before


def test_a_patch_with_another_byte_anywhere_never_gives_another_base(made: Path) -> None:
    content = (made / "patch").read_bytes()
    base = llama()
    for place in range(8, len(content), 97):
        changed = bytearray(content)
        changed[place] ^= 1
        (made / "patch").write_bytes(changed)
        try:
            undo(made)
        except (CorruptInputError, MismatchError, VerificationError):
            assert not (made / "back.ckpt").exists()
        else:
            found = read(made / "back.ckpt")
            assert sorted(array.tobytes() for array in found.values()) == sorted(a.tobytes() for a in base.values())
            (made / "back.ckpt").unlink()


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -1])
def test_a_patch_that_is_cut_off_is_corrupt(made: Path, keep: int) -> None:
    (made / "patch").write_bytes((made / "patch").read_bytes()[:keep])
    with pytest.raises(CorruptInputError):
        undo(made)


def test_a_file_that_is_no_patch_is_refused(made: Path) -> None:
    write(made / "x.safetensors", llama())
    (made / "x.safetensors").rename(made / "patch")
    with pytest.raises(UnknownFormatError, match=r"a patch that pet-merge --unmerge-patch wrote"):
        undo(made)


def test_a_patch_that_is_not_there_is_missing(made: Path) -> None:
    (made / "patch").unlink()
    with pytest.raises(InputMissingError):
        undo(made)


def again(folder: Path, **options: object) -> None:
    options = {"output": folder / "new.ckpt", "unmerge_patch": folder / "patch", **options}
    merge(folder / "base.ckpt", folder / "lora.ckpt", scaling=2, **options)  # type: ignore[arg-type]


def test_an_existing_patch_is_kept_but_with_force(made: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"--unmerge-patch .*patch: expected a free path"):
        again(made)
    assert not (made / "new.ckpt").exists()
    again(made, force=True)


def test_force_replaces_no_file_but_a_patch(made: Path) -> None:
    (made / "patch").write_text("a letter")
    with pytest.raises(OutputExistsError, match=r"something that is no patch"):
        again(made, force=True)
    assert (made / "patch").read_text() == "a letter"


@pytest.mark.parametrize("place", ["base.ckpt", "lora.ckpt", "new.ckpt", "new.ckpt/patch"])
def test_a_patch_goes_neither_onto_an_input_nor_into_the_output(made: Path, place: str) -> None:
    with pytest.raises(UsageError, match=r"--unmerge-patch"):
        again(made, unmerge_patch=made / place, force=True)


@pytest.mark.parametrize("options", [{"executor": "ray"}, {"ranks": "0-3"}])
def test_what_other_runs_or_machines_write_has_no_patch(made: Path, options: dict[str, str]) -> None:
    pytest.importorskip("ray") if "executor" in options else None
    with pytest.raises(UsageError, match=r"--unmerge-patch"):
        again(made, unmerge_patch=made / "other", **options)


def test_a_merge_that_fails_leaves_no_patch_and_keeps_the_old_one(made: Path) -> None:
    arrays = llama()
    arrays["lm_head.weight"][0, 5] = np.nan
    write(made / "base.ckpt", arrays)
    old = (made / "patch").read_bytes()
    before = names_of(made)
    with pytest.raises(MismatchError, match=r"NaN"):
        again(made, force=True)
    with pytest.raises(MismatchError, match=r"NaN"):
        again(made, unmerge_patch=made / "other")
    assert (names_of(made), (made / "patch").read_bytes()) == (before, old)


def test_a_dry_run_writes_neither(made: Path) -> None:
    before = names_of(made)
    again(made, unmerge_patch=made / "other", dry_run=True)
    unmerge(made / "merged.ckpt", made / "lora.ckpt", patch=made / "patch", output=made / "b.ckpt", dry_run=True)
    assert names_of(made) == before


def test_the_patch_says_what_it_is_of(made: Path) -> None:
    facts = read_patch(made / "patch").facts
    assert (facts.base_file, facts.merged_file) == ("base.ckpt", "merged.ckpt")
    assert [adapter.file for adapter in facts.adapters] == ["lora.ckpt"]
    assert [record.name for record in facts.tensors] == list(llama())
    header = (made / "patch").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["lengths"]["dtype"] == "U32"


def test_slices_of_ranks_are_undone_from_and_to_slices(tmp_path: Path) -> None:
    adapter, base = lora(tmp_path / "lora.ckpt"), llama()
    write(tmp_path / "base.ckpt", base)
    layouts = {
        name: {
            "dev_matrix": [2],
            "tensor_map": [0] + [-1] * (array.ndim - 1),
            "param_split_shape": [],
            "indices_offset": [],
            "field": 0,
            "opt_weight_shard_step": 0,
            "opt_weight_shard_size": 0,
        }
        for name, array in base.items()
    }
    document = {
        "current_stage": 1,
        "parallel_strategy_item": {"operator": {"stage": 0, "parallel_strategy": [[2]]}},
        "parallel_layout_item": layouts,
    }
    strategy, patch = tmp_path / "strategy.json", tmp_path / "patch"
    strategy.write_text(json.dumps(document))
    merge(
        *(tmp_path / "base.ckpt", adapter),
        scaling=2,
        dst_strategy=strategy,
        output=tmp_path / "m",
        unmerge_patch=patch,
    )
    cut = unmerge(
        *(tmp_path / "m", adapter), patch=patch, src_strategy=strategy, dst_strategy=strategy, output=tmp_path / "cut"
    )
    assert len(cut.files) == 2
    unmerge(tmp_path / "m", adapter, patch=patch, src_strategy=strategy, output=tmp_path / "back.ckpt")
    assert_same_bits(read(tmp_path / "back.ckpt"), base)


def test_a_patch_whose_merge_was_killed_before_its_output_appeared_is_made_again(made: Path) -> None:
    merged, patch = (made / "merged.ckpt").read_bytes(), (made / "patch").read_bytes()
    (made / "merged.ckpt").unlink()
    given = (made / "base.ckpt", made / "lora.ckpt")
    merge(*given, scaling=2, output=made / "merged.ckpt", unmerge_patch=made / "patch")
    assert (made / "merged.ckpt").read_bytes() == merged
    assert (made / "patch").read_bytes() == patch


def test_the_patch_of_another_merge_is_not_replaced_though_its_output_is_gone(made: Path) -> None:
    (made / "merged.ckpt").unlink()
    given = (made / "base.ckpt", made / "lora.ckpt")
    with pytest.raises(OutputExistsError, match="it exists already"):
        merge(*given, scaling=3, output=made / "merged.ckpt", unmerge_patch=made / "patch")


def test_an_interruption_when_all_is_published_keeps_the_patch_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(workspace: Workspace) -> None:
        genuine(workspace)
        if workspace.output.name == "merged.ckpt":
            signal.raise_signal(signal.SIGINT)

    genuine = Workspace.put_in_place
    monkeypatch.setattr(Workspace, "put_in_place", interrupted)
    lora(tmp_path / "lora.ckpt")
    write(tmp_path / "base.ckpt", llama())
    given = (tmp_path / "base.ckpt", tmp_path / "lora.ckpt")
    with pytest.raises(KeyboardInterrupt, match="the output is complete"):
        merge(*given, scaling=2, output=tmp_path / "merged.ckpt", unmerge_patch=tmp_path / "patch")
    assert {"merged.ckpt", "patch"} <= set(names_of(tmp_path))


def test_a_kill_before_an_older_patch_was_replaced_keeps_the_next_run_from_nothing(made: Path) -> None:
    with claim_output(made / "patch", "unmerge patch", is_folder=False, force=True) as workspace:
        os.link(made / "patch", workspace.folder / "replaced")
        workspace.folder.rename(made / "kept")
    (made / "kept").rename(workspace.folder)
    given = (made / "base.ckpt", made / "lora.ckpt")
    merge(*given, scaling=2, output=made / "merged.ckpt", unmerge_patch=made / "patch", force=True)
    assert not workspace.folder.exists()
    undo(made, "lora.ckpt")

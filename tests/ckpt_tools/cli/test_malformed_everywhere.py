"""Malformed files and folders through every command, as every kind of input: exit 4, and nothing is touched or left."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
from ckpt_bytes import floats
from commands import Command
from every_command import caller, write_inputs
from folders import write_two_shards
from iteration_folders import write_iteration, write_metadata
from malformed import FILES, FLIPPED, FOLDERS
from merge_cases import BASE, random, tree, write
from strategy_bytes import strategy_bytes

from ckpt_tools.layout.model import Layout

X = "{input}"
CONFIG = ("--config", "run.json")
ALPHA = ("--alpha", "8")

# Where an input may stand; pet-merge's base and adapters are in test_merge_malformed.
WEIGHTS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", X),
    "inspect OTHER": ("inspect", "base.ckpt", X),
    "inject": ("inject", X, *CONFIG),
    "inject --adapter": ("inject", "base.ckpt", *CONFIG, "--adapter", X),
    "split": ("split", X, *ALPHA),
    "split --base": ("split", "merged.ckpt", "--base", X, "--rank", "4"),
    "transform": ("transform", X, "-o", "out"),
    "verify MERGED": ("verify", X),
    "verify BASE": ("verify", X, "lora.ckpt", "merged.ckpt", *ALPHA),
    "verify ADAPTER": ("verify", "base.ckpt", X, "merged.ckpt", *ALPHA),
    "verify BASE ADAPTER MERGED": ("verify", "base.ckpt", "lora.ckpt", X, *ALPHA),
    "merge --unmerge": ("merge", "--unmerge", "patch.ckpt", X, "lora.ckpt"),
    "merge --unmerge ADAPTER": ("merge", "--unmerge", "patch.ckpt", "merged.ckpt", X),
}
OTHERS: dict[str, tuple[str, ...]] = {
    "inject --config": ("inject", "base.ckpt", "--config", X),
    "merge --config": ("merge", "base.ckpt", "lora.ckpt", "--config", X),
    "merge --names": ("merge", "base.ckpt", "lora.ckpt", *ALPHA, "--names", X),
    "merge --unmerge PATCH": ("merge", "--unmerge", X, "merged.ckpt", "lora.ckpt"),
    "split --config": ("split", "tuned.ckpt", "--config", X),
    "transform --dst-strategy": ("transform", "base.ckpt", "--dst-strategy", X, "-o", "out"),
    "verify --config": ("verify", "base.ckpt", "lora.ckpt", "merged.ckpt", "--config", X),
}
# Only what reads contents can see that a bit of them was flipped.
READS_CONTENTS = {"transform", "verify BASE", "verify ADAPTER", "merge --unmerge", "merge --unmerge ADAPTER", *OTHERS}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture
def call(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """A command in a folder with sound inputs."""
    copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return caller(capsys.readouterr)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(call: Command, folder: Path, use: tuple[str, ...], given: str, code: int = 4) -> None:
    before = names(folder)
    found, out, err = call(*(given if word == X else word for word in use))
    assert (found, out) == (code, ""), f"{given}: {err}"
    assert all(line.startswith(("error: ", "warning: ")) for line in err.splitlines()), err
    assert len(err) < 20_000
    assert names(folder) == before


@pytest.mark.parametrize("use", [*WEIGHTS, *OTHERS])
def test_malformed_files_are_refused(call: Command, tmp_path: Path, use: str) -> None:
    for name, data in FILES.items():
        if name == FLIPPED and use not in READS_CONTENTS:
            continue
        (tmp_path / name).write_bytes(data)
        before = tree(tmp_path)
        assert_refused(call, tmp_path, (WEIGHTS | OTHERS)[use], name)
        assert tree(tmp_path) == before
        (tmp_path / name).unlink()


@pytest.mark.parametrize("fault", FOLDERS)
def test_malformed_folders_are_refused(call: Command, tmp_path: Path, fault: str) -> None:
    code, spoil = FOLDERS[fault]
    (tmp_path / "parent" / "folder").mkdir(parents=True)
    write_two_shards(tmp_path / "parent" / "folder")
    spoil(tmp_path / "parent" / "folder")
    for use in WEIGHTS.values():
        if use != WEIGHTS["verify MERGED"]:  # a folder without a manifest is none to verify
            assert_refused(call, tmp_path, use, "parent/folder", code)


def test_2_a_file_cut_at_any_byte_is_refused(call: Command, tmp_path: Path) -> None:
    data = floats("x.lora_a", 2) + floats("x.lora_b", 2)
    half = len(data) // 2
    for size in range(len(data)):
        if size != half:  # the end of a value: only a manifest knows that something is missing
            (tmp_path / "cut.ckpt").write_bytes(data[:size])
            assert_refused(call, tmp_path, ("merge", "base.ckpt", X, *ALPHA), "cut.ckpt")


def test_3_a_cut_at_the_end_of_a_value_is_found_by_a_manifest(call: Command, tmp_path: Path) -> None:
    assert call("transform", "base.ckpt", "-o", "out.ckpt", "-q")[0] == 0
    whole, manifest = (tmp_path / "out.ckpt").read_bytes(), (tmp_path / "out.pet-manifest.json").read_bytes()
    write(tmp_path / "out.ckpt", dict(list(BASE.items())[:-1]))
    (tmp_path / "out.pet-manifest.json").write_bytes(manifest)
    assert whole.startswith((tmp_path / "out.ckpt").read_bytes())
    assert_changed(call, tmp_path, "out.ckpt")


@pytest.mark.parametrize("output", ["out.ckpt", "out.safetensors"])
def test_5_a_flipped_bit_is_found_by_a_manifest(call: Command, tmp_path: Path, output: str) -> None:
    assert call("transform", "base.ckpt", "-o", output, "-q")[0] == 0
    data = bytearray((tmp_path / output).read_bytes())
    data[-1] ^= 1
    (tmp_path / output).write_bytes(data)
    assert_changed(call, tmp_path, output)


def assert_changed(call: Command, folder: Path, output: str) -> None:
    before = tree(folder)
    code, out, err = call("verify", output)
    assert (code, out) == (6, ""), err
    assert "lm_head.weight" in err
    assert tree(folder) == before


@pytest.mark.parametrize("command", ["inspect", "merge", "split", "transform", "verify"])
def test_44_metadata_json_and_files_that_disagree_are_refused(call: Command, tmp_path: Path, command: str) -> None:
    tensors = {"x.weight": (random(0, 4, 4), (2, 1)), "x.bias": (random(1, 4), (2,))}
    document = write_iteration(tmp_path / "iteration_00000001", tensors, 2)
    uses = {
        "inspect": WEIGHTS["inspect"],
        "merge": ("merge", X, "lora.ckpt", *ALPHA),
        "split": WEIGHTS["split"],
        "transform": WEIGHTS["transform"],
        "verify": WEIGHTS["verify BASE"],
    }
    document["state_dict_metadata"]["x.weight"]["chunk"][0]["local_shape"] = [2, 3]
    write_metadata(tmp_path / "iteration_00000001", document)
    assert_refused(call, tmp_path, uses[command], "iteration_00000001", 5)
    (tmp_path / "iteration_00000001" / "metadata.json").write_text('{"state_dict_metadata": [')
    assert_refused(call, tmp_path, uses[command], "iteration_00000001", 4)


BOMB = "\n".join(["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)])
YAML = {
    "an object of Python": "pet_config: {lora_rank: !!python/object/apply:os.system [true]}",
    "an alias bomb": BOMB,
    "a key twice": "pet_config: {lora_rank: 4, lora_alpha: 8, lora_alpha: 9}",
    "a value that is none of its tag": "pet_config: {lora_rank: !!bool 4}",
    "a number to the base of 60": "pet_config: {lora_alpha: 1" + ":1" * 100_000 + "}",
    "deep lists": "pet_config: " + "[" * 1000,
}


@pytest.mark.parametrize("use", [use for use in OTHERS if use.endswith("--config")])
@pytest.mark.parametrize("fault", YAML)
def test_45_hostile_yaml_is_refused(call: Command, tmp_path: Path, fault: str, use: str) -> None:
    (tmp_path / "run.yaml").write_text(YAML[fault])
    assert_refused(call, tmp_path, OTHERS[use], "run.yaml")


@pytest.mark.parametrize("place", ["index", "adapter configuration", "strategy", "metadata.json", "manifest"])
def test_37_json_nested_a_hundred_thousand_deep_is_refused(call: Command, tmp_path: Path, place: str) -> None:
    deep = '{"weight_map": ' + "[" * 100_000
    (tmp_path / "folder").mkdir()
    if place == "index":
        write_two_shards(tmp_path / "folder")
        (tmp_path / "folder" / "model.safetensors.index.json").write_text(deep)
        assert_refused(call, tmp_path, WEIGHTS["transform"], "folder")
    elif place == "adapter configuration":
        (tmp_path / "deep.json").write_text(deep)
        assert_refused(call, tmp_path, OTHERS["merge --config"], "deep.json")
    elif place == "strategy":
        (tmp_path / "deep.json").write_text(deep)
        assert_refused(call, tmp_path, OTHERS["transform --dst-strategy"], "deep.json")
    elif place == "metadata.json":
        write_iteration(tmp_path / "folder", {"w": (random(0, 4), (2,))}, 2)
        (tmp_path / "folder" / "metadata.json").write_text('{"state_dict_metadata": ' + "[" * 100_000)
        assert_refused(call, tmp_path, WEIGHTS["transform"], "folder")
    else:
        write_two_shards(tmp_path / "folder")
        (tmp_path / "folder" / "pet-manifest.json").write_text(deep)
        assert_refused(call, tmp_path, WEIGHTS["verify MERGED"], "folder")


def test_40_a_strategys_names_with_a_dash_are_names(call: Command, tmp_path: Path) -> None:
    write(tmp_path / "dash.ckpt", {"a-b.weight": random(0, 4, 4)})
    (tmp_path / "dash-strategy.ckpt").write_bytes(strategy_bytes({"a-b.weight": Layout((2,), ((0,), ()))}))
    code, out, err = call("transform", "dash.ckpt", "--dst-strategy", "dash-strategy.ckpt", "-o", "ranks", "--json")
    assert code == 0, err
    assert json.loads(out)["output"] == "ranks"
    assert sorted(path.name for path in (tmp_path / "ranks").glob("rank_*")) == ["rank_0", "rank_1"]

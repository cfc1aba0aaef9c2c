"""No output option of any command takes an input's place, whatever the input is called there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, copytree

import pytest
from commands import PET_MERGE, Command, environment
from every_command import caller, write_inputs
from merge_cases import BASE, tree, write_folder

HERE = "{here}"

MERGE = ("merge", "base.ckpt", "lora.ckpt", "--alpha", "8")
SPLIT = ("split", "tuned.ckpt", "--alpha", "8")
CONFIG = ("--config", "run.json")

# For each output option: its command with `{here}` for the path, how its inputs end, and which may not be taken.
OPTIONS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "merge -o": (("merge", "base.ckpt", "lora.ckpt", "--alpha", "8", "-o", HERE), ".ckpt", ("base", "lora")),
    "merge --src-strategy -o": (
        ("merge", "base.ckpt", "lora.ckpt", "--alpha", "8", "--dst-strategy", "src.ckpt", "-o", HERE),
        ".ckpt",
        ("src",),
    ),
    "merge --unmerge-patch": (
        ("merge", "base.ckpt", "lora.ckpt", "--alpha", "8", "-o", "out.ckpt", "--unmerge-patch", HERE),
        ".ckpt",
        ("base", "lora"),
    ),
    "merge --html": (
        ("merge", "base.html", "lora.html", "--alpha", "8", "-o", "out.ckpt", "--html", HERE),
        ".html",
        ("base", "lora"),
    ),
    "merge --unmerge -o": (
        ("merge", "--unmerge", "patch.ckpt", "merged.ckpt", "lora.ckpt", "-o", HERE),
        ".ckpt",
        ("merged", "lora", "patch"),
    ),
    "split -o": (("split", "tuned.ckpt", "--alpha", "8", "-o", HERE), ".ckpt", ("tuned",)),
    "split --base -o": (
        ("split", "merged.ckpt", "--base", "base.ckpt", "--rank", "4", "-o", HERE),
        ".ckpt",
        ("merged", "base"),
    ),
    "split --remainder": (
        ("split", "tuned.ckpt", "--alpha", "8", "-o", "out.ckpt", "--remainder", HERE),
        ".ckpt",
        ("tuned",),
    ),
    "split --html": (("split", "tuned.html", "--alpha", "8", "-o", "out.ckpt", "--html", HERE), ".html", ("tuned",)),
    "inject -o": (("inject", "base.ckpt", "--config", "run.json", "-o", HERE), ".ckpt", ("base",)),
    "inject --adapter -o": (
        ("inject", "base.ckpt", "--config", "run.json", "--adapter", "lora.ckpt", "-o", HERE),
        ".ckpt",
        ("base", "lora"),
    ),
    "inject --html": (
        ("inject", "base.html", "--config", "run.json", "-o", "out.ckpt", "--html", HERE),
        ".html",
        ("base",),
    ),
    "transform -o": (
        ("transform", "base.ckpt", "--dst-strategy", "src.ckpt", "-o", HERE),
        ".ckpt",
        ("base", "src"),
    ),
    "transform --html": (("transform", "base.html", "-o", "out.ckpt", "--html", HERE), ".html", ("base",)),
    "verify --html": (
        ("verify", "base.html", "lora.html", "merged.html", "--alpha", "8", "--html", HERE),
        ".html",
        ("base", "lora", "merged"),
    ),
    "inspect --html": (("inspect", "base.html", "merged.html", "--html", HERE), ".html", ("base", "merged")),
}


# Output options that get in each other's way, and what lies beside an output: `{here}` is what would be written twice.
OVERLAPS: dict[str, tuple[str, ...]] = {
    "patch on the output": (*MERGE, "-o", "x.ckpt", "--unmerge-patch", "./x.ckpt"),
    "patch in the output": (*MERGE, "-o", "x", "--unmerge-patch", "x/patch"),
    "patch on the manifest": (*MERGE, "-o", "x.ckpt", "--unmerge-patch", "x.pet-manifest.json"),
    "page on the patch": (*MERGE, "-o", "x.ckpt", "--unmerge-patch", "x.html", "--html", "x.html"),
    "remainder on the output": (*SPLIT, "-o", "x.ckpt", "--remainder", "../{folder}/x.ckpt"),
    "remainder in the output": (*SPLIT, "-o", "x", "--remainder", "x/rest"),
    "output in the remainder": (*SPLIT, "-o", "x/adapter", "--remainder", "x"),
    "remainder on the manifest": (*SPLIT, "-o", "x.ckpt", "--remainder", "x.pet-manifest.json"),
    "remainder on the configuration": (*SPLIT, "-o", "x.ckpt", "--remainder", "x.adapter_config.json"),
    "page on the remainder": (*SPLIT, "-o", "x", "--remainder", "x.html", "--html", "x.html"),
}

# Inputs that lie where something beside the output would go; `--force` does not take them either.
BESIDE: dict[str, tuple[str, tuple[str, ...]]] = {
    "manifest of a merge": ("x.pet-manifest.json", ("merge", "{input}", "lora.ckpt", "--alpha", "8", "-o", "x.ckpt")),
    "manifest of a split": ("x.pet-manifest.json", ("split", "{input}", "--alpha", "8", "-o", "x.ckpt")),
    "manifest of a transform": ("x.pet-manifest.json", ("transform", "{input}", "-o", "x.ckpt")),
    "manifest of an injection": ("x.pet-manifest.json", ("inject", "{input}", *CONFIG, "-o", "x.ckpt")),
    "configuration of a split": ("x.adapter_config.json", ("split", "{input}", "--alpha", "8", "-o", "x.ckpt")),
    "configuration of an injection": ("x.adapter_config.json", ("inject", "{input}", *CONFIG, "-o", "x.ckpt")),
    "list of an injection": ("x.trainable_parameters.json", ("inject", "{input}", *CONFIG, "-o", "x.ckpt")),
}


def linked(file: Path, link: Callable[[Path, Path], None]) -> str:
    link(file, Path(f"link{file.suffix}"))
    return f"link{file.suffix}"


def through_linked_folder(file: Path) -> str:
    Path("linked").symlink_to(".")
    return f"linked/{file}"


DISGUISES: dict[str, Callable[[Path], str]] = {
    "same": str,
    "absolute": lambda file: str(Path.cwd() / file),
    "dots": lambda file: f"../{Path.cwd().name}/./{file}",
    "hard link": lambda file: linked(file, os.link),
    "symbolic link": lambda file: linked(file, os.symlink),
    "linked folder": through_linked_folder,
    "working folder of the process": lambda file: f"/proc/self/cwd/{file}",
}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs, once for each way in which their names may end."""
    folder = tmp_path_factory.mktemp("inputs")
    for suffix in (".ckpt", ".html"):
        (folder / suffix).mkdir()
        write_inputs(folder / suffix, suffix)
    return folder


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    return caller(capsys.readouterr)


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_input_in_any_disguise_is_refused_and_stays(
    call: Command, tmp_path: Path, templates: Path, option: str, disguise: str
) -> None:
    words, suffix, inputs = OPTIONS[option]
    copytree(templates / suffix, tmp_path, dirs_exist_ok=True)
    for stem in inputs:
        here = DISGUISES[disguise](Path(f"{stem}{suffix}"))
        before = tree(tmp_path)
        for force in ([], ["--force"]):
            code, out, err = call(*(here if word == HERE else word for word in words), *force)
            # A patch takes no place but a patch's, so that a link to an input is refused as no patch.
            assert code == 2 or (code == 8 and "patch" in option), err
            assert (out, tree(tmp_path)) == ("", before)
        for link in ("linked", f"link{suffix}"):
            Path(link).unlink(missing_ok=True)


@pytest.mark.parametrize("case", OVERLAPS)
def test_two_outputs_in_one_place_are_refused_before_either_is_written(
    call: Command, tmp_path: Path, templates: Path, case: str
) -> None:
    copytree(templates / ".ckpt", tmp_path, dirs_exist_ok=True)
    before = tree(tmp_path)
    for force in ([], ["--force"]):
        code, out, err = call(*(word.replace("{folder}", tmp_path.name) for word in OVERLAPS[case]), *force)
        assert (code, out) == (2, ""), err
        assert tree(tmp_path) == before


@pytest.mark.parametrize("case", BESIDE)
def test_an_input_where_something_beside_the_output_goes_is_refused_and_stays(
    call: Command, tmp_path: Path, templates: Path, case: str
) -> None:
    name, words = BESIDE[case]
    copytree(templates / ".ckpt", tmp_path, dirs_exist_ok=True)
    (tmp_path / ("tuned.ckpt" if "split" in words else "base.ckpt")).rename(tmp_path / name)
    before = tree(tmp_path)
    for force in ([], ["--force"]):
        code, out, err = call(*(word.replace("{input}", name) for word in words), *force)
        assert code == 2, err
        assert "is an input" in err
        assert (out, tree(tmp_path)) == ("", before)


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "", "lora.ckpt", "--alpha", "8", "-o", "x.ckpt"),
        ("merge", "base.ckpt", "", "--alpha", "8", "-o", "x.ckpt"),
        ("split", "", "--alpha", "8", "-o", "x.ckpt"),
        ("inject", "", *CONFIG, "-o", "x.ckpt"),
        ("transform", "", "-o", "x.ckpt"),
        ("verify", "base.ckpt", "", "merged.ckpt", "--alpha", "8"),
        ("inspect", ""),
        ("inspect", "base.ckpt", ""),
    ],
)
def test_an_empty_input_is_not_the_folder_where_the_command_runs(
    call: Command, tmp_path: Path, templates: Path, words: tuple[str, ...]
) -> None:
    copytree(templates / ".ckpt", tmp_path, dirs_exist_ok=True)
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "found an empty path" in err


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "ranks", "lora.ckpt", "--alpha", "8", "--src-strategy", "src.ckpt", "-o", "ranks/rank_0/x.ckpt"),
        ("transform", "ranks", "--src-strategy", "src.ckpt", "-o", "ranks/rank_0/x.ckpt"),
        ("inject", "ranks", *CONFIG, "--src-strategy", "src.ckpt", "-o", "ranks/rank_0/x.ckpt"),
        ("transform", "shards/model.safetensors.index.json", "-o", "shards/x.safetensors"),
        ("merge", "shards/model.safetensors.index.json", "lora.ckpt", "--alpha", "8", "-o", "shards/x.safetensors"),
    ],
)
def test_no_file_is_added_to_a_folder_that_is_read_but_was_not_named(
    call: Command, tmp_path: Path, templates: Path, words: tuple[str, ...]
) -> None:
    copytree(templates / ".ckpt", tmp_path, dirs_exist_ok=True)
    write_folder(tmp_path / "shards", BASE)
    (tmp_path / "ranks" / "rank_0").mkdir(parents=True)
    (tmp_path / "base.ckpt").rename(tmp_path / "ranks" / "rank_0" / "a.ckpt")
    before = tree(tmp_path)
    for force in ([], ["--force"]):
        code, out, err = call(*words, *force)
        assert code == 2, err
        assert "a part of the input" in err
        assert (out, tree(tmp_path)) == ("", before)


PAGES = {
    "merge": ("merge", "shards", "lora.ckpt", "--alpha", "8", "-o", "x.ckpt"),
    "merge, an adapter": ("merge", "base.ckpt", "served", "--alpha", "8", "-o", "x.ckpt"),
    "merge of adapters": ("merge", "--adapters-only", "served", "--alpha", "8", "-o", "x.ckpt"),
    "split": ("split", "shards", "--base", "base.ckpt", "--rank", "2", "-o", "x.ckpt"),
    "inject": ("inject", "shards", *CONFIG, "-o", "x.ckpt"),
    "transform": ("transform", "ranks", "--src-strategy", "src.ckpt", "-o", "x.ckpt"),
    "transform, an index": ("transform", "shards/model.safetensors.index.json", "-o", "x.ckpt"),
    "verify": ("verify", "base.ckpt", "served", "shards", "--alpha", "8"),
    "inspect": ("inspect", "ranks"),
    "inspect, the other": ("inspect", "base.ckpt", "shards"),
}


@pytest.fixture
def folders(tmp_path: Path, templates: Path) -> dict[str, Path]:
    """Inputs that are folders: the folder that the user names, to a file in it."""
    copytree(templates / ".ckpt", tmp_path, dirs_exist_ok=True)
    write_folder(tmp_path / "shards", BASE)
    files = {"ranks": Path("ranks/rank_0/a.ckpt"), "served": Path("served/adapter_model.ckpt")}
    for name, stem in (("ranks", "base"), ("served", "lora")):
        files[name].parent.mkdir(parents=True)
        copyfile(f"{stem}.ckpt", files[name])
    return files | {"shards": next(Path("shards").glob("*.safetensors"))}


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("case", PAGES)
def test_a_page_that_is_a_file_in_a_folder_that_is_read_is_refused_and_stays(
    call: Command, tmp_path: Path, folders: dict[str, Path], case: str, link: Callable[[Path, str], None]
) -> None:
    words = PAGES[case]
    named = [name for name in folders if any(word.partition("/")[0] == name for word in words)]
    assert named
    for name in named:
        link(folders[name], "page.html")
        before = tree(tmp_path)
        for force in ([], ["--force"]):
            code, out, err = call(*words, "--html", "page.html", *force)
            assert code == 2, err
            assert f"it is {folders[name]}, an input" in err
            assert (out, tree(tmp_path)) == ("", before)
        Path("page.html").unlink()


@pytest.mark.parametrize("case", PAGES)
def test_no_page_is_added_to_a_folder_that_is_read(
    call: Command, tmp_path: Path, folders: dict[str, Path], case: str
) -> None:
    words = PAGES[case]
    before = tree(tmp_path)
    for name in (name for name in folders if any(word.partition("/")[0] == name for word in words)):
        code, out, err = call(*words, "--html", str(folders[name].with_name("page.html")))
        assert code == 2, err
        assert f"a part of {name}" in err
        assert (out, tree(tmp_path)) == ("", before)


IN_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")
MAY_MOUNT = subprocess.run([*IN_NAMESPACE, "mount --bind /tmp /tmp"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not MAY_MOUNT, reason="the kernel lets this user mount nothing, not even in a namespace of its own")
def test_a_folder_that_holds_an_input_under_another_mount_is_refused_and_stays(tmp_path: Path, templates: Path) -> None:
    copytree(templates / ".ckpt", tmp_path / "top" / "run")
    (tmp_path / "alias").mkdir()
    before = tree(tmp_path)
    script = 'mount --bind top alias && exec "$@"'
    command = [*IN_NAMESPACE, script, "sh", *PET_MERGE, "top/run/base.ckpt", "top/run/lora.ckpt", "--alpha", "8"]
    done = subprocess.run(
        [*command, "-o", "alias/run", "--force"],
        cwd=tmp_path,
        env=environment(),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "holds, the input" in done.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize("mask", [0o077, 0o027])
@pytest.mark.parametrize(
    "words",
    [
        (*MERGE, "-o", "x.ckpt", "--unmerge-patch", "x.patch", "--html", "x.html"),
        (*SPLIT, "-o", "x.ckpt", "--remainder", "y.safetensors"),
        ("inject", "base.ckpt", *CONFIG, "-o", "x.ckpt"),
        ("transform", "base.ckpt", "-o", "x"),
    ],
)
def test_whatever_is_written_has_the_mode_that_the_umask_asks_for(
    call: Command, tmp_path: Path, templates: Path, words: tuple[str, ...], mask: int
) -> None:
    copytree(templates / ".ckpt", tmp_path, dirs_exist_ok=True)
    given = set(tmp_path.rglob("*"))
    before = os.umask(mask)
    try:
        code, _, err = call(*words)
    finally:
        os.umask(before)
    assert code == 0, err
    written = set(tmp_path.rglob("*")) - given
    assert len(written) > 1
    assert {path.stat().st_mode & 0o777 for path in written if path.is_file()} == {0o666 & ~mask}

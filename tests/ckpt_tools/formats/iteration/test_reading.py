"""An iteration's folder as whole tensors, and every way in which its metadata and its files may disagree."""

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from iteration_folders import (
    MEANINGS,
    describe,
    file_name,
    joined,
    write_file,
    write_files,
    write_iteration,
    write_metadata,
)

from ckpt_tools.formats import MODEL, OPTIMIZER, GlobalTensor, read_iteration
from surgery.errors import CorruptInputError, InputMissingError, MismatchError, PetSurgeryError

TENSORS = {
    "model.w": (np.arange(48, dtype=np.float32).reshape(4, 12), (2, 2)),
    """it's ("é", (0,)).b""": (np.arange(4).astype(ml_dtypes.bfloat16), (4,)),
    "replicated": (np.arange(6, dtype=np.int64), (1,)),
    "scalar": (np.array(2.5, np.float32), ()),
    "adam_m.model.w": (np.arange(48, dtype=np.float32).reshape(4, 12) + 100, (4, 1)),
}
RANKS = 4
FIRST = file_name("model.w", 0, RANKS)
Document = dict[str, Any]


@pytest.fixture
def document(tmp_path: Path) -> Document:
    return write_iteration(tmp_path / "iteration_00000012", TENSORS, RANKS)


@pytest.fixture
def folder(tmp_path: Path, document: Document) -> Path:
    return tmp_path / "iteration_00000012"


def refusal(folder: Path, kind: type[PetSurgeryError] = MismatchError) -> str:
    with pytest.raises(kind) as caught:
        read_iteration(folder)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("meaning", sorted(MEANINGS))
def test_tensors_are_whole_whatever_the_offsets_mean(tmp_path: Path, meaning: str) -> None:
    write_iteration(tmp_path, TENSORS, RANKS, MEANINGS[meaning])
    iteration = read_iteration(tmp_path)
    assert list(iteration.tensors) == list(TENSORS)
    assert iteration.warnings == ()
    for name, (array, parts) in TENSORS.items():
        tensor = iteration.tensors[name]
        assert (tensor.name, tensor.shape) == (name, array.shape)
        assert tuple(len(cuts) - 1 for cuts in tensor.edges) == parts
        assert np.array_equal(joined(tensor), array)
    assert iteration.nbytes == sum(array.nbytes for array, _ in TENSORS.values())


def test_what_is_beside_the_tensors_is_reported(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12")
    iteration = read_iteration(tmp_path)
    assert iteration.path == folder
    assert iteration.number == 12
    assert iteration.common == {"global_step": 5}
    assert iteration.prefix is None
    assert iteration.files == tuple(file_name(name, rank, RANKS) for name in ("model", "adam") for rank in range(RANKS))
    assert {Path(source.path).name for source in iteration.sources} == {
        *iteration.files, "metadata.json", "common.json"
    }  # fmt: skip
    assert iteration.unlisted == {}


def test_the_files_say_what_is_an_optimizer_state(folder: Path) -> None:
    tensors = read_iteration(folder).tensors
    assert {name: tensor.kind for name, tensor in tensors.items()} == {
        name: OPTIMIZER if name.startswith("adam") else MODEL for name in TENSORS
    }


def test_of_replicas_that_of_the_lowest_rank_is_the_chunk(folder: Path, document: Document) -> None:
    for holders in document["storage_data"].values():
        holders.reverse()
    write_metadata(folder, document)
    tensor = read_iteration(folder).tensors["replicated"]
    assert [(chunk.rank, chunk.file) for chunk in tensor.chunks] == [(0, FIRST)]
    assert [chunk.rank for chunk in tensor.replicas] == [1, 2, 3]
    assert all(chunk.region == ((0, 6),) for chunk in tensor.replicas)


def test_chunks_come_in_the_order_of_the_grid(folder: Path, document: Document) -> None:
    document["state_dict_metadata"]["model.w"]["chunk"].reverse()
    write_metadata(folder, document)
    regions = [chunk.region for chunk in read_iteration(folder).tensors["model.w"].chunks]
    assert regions == [((0, 2), (0, 6)), ((0, 2), (6, 12)), ((2, 4), (0, 6)), ((2, 4), (6, 12))]


def test_replicas_that_were_left_out_on_saving_are_not_missed(tmp_path: Path) -> None:
    """File numbers then count files and not ranks."""
    write_files(tmp_path, {"w": (np.arange(4, dtype=np.float32), (2,))}, 2)
    document = describe({"w": (np.arange(4, dtype=np.float32), (2,))}, 8)
    for index in range(2):
        kept = document["storage_data"][repr(("w", (index,)))][3]
        kept["file_name"] = file_name("w", index, 2)
        assert kept["storage_rank"] == 6 + index
        document["storage_data"][repr(("w", (index,)))] = [kept]
    write_metadata(tmp_path, document)
    tensor = read_iteration(tmp_path).tensors["w"]
    assert [chunk.rank for chunk in tensor.chunks] == [6, 7]
    assert joined(tensor).tolist() == [0, 1, 2, 3]


def test_a_tensor_that_two_stages_hold_has_the_layout_of_one(tmp_path: Path) -> None:
    tied = {"tied": (np.arange(4, dtype=np.float32), (2,))}
    document = write_iteration(tmp_path, tied, 4)
    layout = document["state_dict_metadata"]["tied"]["layout"]
    layout.update(device_matrix=[2], tensor_map=[0], alias_name=["a"], rank_list=[0, 1])
    write_metadata(tmp_path, document)
    tensor = read_iteration(tmp_path).tensors["tied"]
    assert joined(tensor).tolist() == [0, 1, 2, 3]
    assert [chunk.rank for chunk in tensor.replicas] == [2, 3]


def test_a_single_rank_needs_no_metadata(tmp_path: Path) -> None:
    write_file(tmp_path / "llama-model-0000000-0000001.safetensors", {"w": np.ones((2, 3), np.float32)})
    write_file(tmp_path / "llama-opt-0000000-0000001.safetensors", {"adam_m.w": np.zeros((2, 3), np.float32)})
    (tmp_path / "common.json").write_text('{"epoch_num": 1}')
    iteration = read_iteration(tmp_path)
    assert iteration.prefix == "llama"
    assert iteration.number is None
    assert {name: tensor.kind for name, tensor in iteration.tensors.items()} == {"w": MODEL, "adam_m.w": OPTIMIZER}
    assert joined(iteration.tensors["w"]).tolist() == np.ones((2, 3)).tolist()
    assert iteration.warnings == ()


def test_the_files_of_several_ranks_without_metadata_are_refused(folder: Path) -> None:
    (folder / "metadata.json").unlink()
    assert "saving ended before it was written" in refusal(folder, InputMissingError)


def test_a_tensor_in_two_files_of_a_single_rank_is_refused(tmp_path: Path) -> None:
    for kind in ("model", "opt"):
        write_file(tmp_path / f"{kind}-0000000-0000001.safetensors", {"w": np.ones(2, np.float32)})
    (tmp_path / "common.json").write_text("{}")
    assert "in one file" in refusal(tmp_path)


def test_a_missing_common_json_is_a_warning(folder: Path) -> None:
    (folder / "common.json").unlink()
    iteration = read_iteration(folder)
    assert iteration.common == {}
    assert "no common.json" in iteration.warnings[0]


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_broken_common_json_is_refused(folder: Path, text: str) -> None:
    (folder / "common.json").write_text(text)
    assert "common.json" in refusal(folder, CorruptInputError)


def test_tensors_that_the_metadata_does_not_name_are_kept_apart_with_a_warning(folder: Path) -> None:
    write_file(folder / FIRST, {
        "learning_rate": np.array(0.5, np.float32),
        "model.w": TENSORS["model.w"][0][:2, :6],
        """it's ("é", (0,)).b""": TENSORS["""it's ("é", (0,)).b"""][0][:1],
        "replicated": TENSORS["replicated"][0],
        "scalar": TENSORS["scalar"][0],
    })  # fmt: skip
    iteration = read_iteration(folder)
    assert "learning_rate" not in iteration.tensors
    (chunk,) = iteration.unlisted["learning_rate"]
    assert (chunk.file, chunk.rank, chunk.region) == (FIRST, 0, ())
    assert "1 tensors of the files are not in it, such as 'learning_rate'" in iteration.warnings[0]


def test_a_copy_in_a_file_that_the_metadata_does_not_name_for_it_is_refused(folder: Path, document: Document) -> None:
    document["storage_data"][repr(("replicated", (0,)))].pop()
    write_metadata(folder, document)
    assert "it in model-0000003-0000004.safetensors, too" in refusal(folder)


def test_a_file_that_the_metadata_does_not_name_is_refused(folder: Path) -> None:
    write_file(folder / "model-0000004-0000005.safetensors", {"x": np.ones(2, np.float32)})
    text = refusal(folder)
    assert "model-0000004-0000005.safetensors: a file that metadata.json does not name" in text


def test_a_missing_file_is_told(folder: Path) -> None:
    (folder / FIRST).unlink()
    (folder / file_name("adam", 2, RANKS)).unlink()
    text = refusal(folder, InputMissingError)
    assert FIRST in text
    assert "opt-0000002-0000004.safetensors" in text


def test_a_name_that_leads_out_of_the_folder_is_refused(folder: Path, document: Document) -> None:
    document["storage_data"][repr(("replicated", (0,)))][0]["file_name"] = "../../etc/passwd"
    write_metadata(folder, document)
    assert "a name inside the folder" in refusal(folder, CorruptInputError)


def test_a_chunk_of_another_shape_or_type_is_refused(folder: Path, document: Document) -> None:
    document["state_dict_metadata"]["model.w"]["properties"]["dtype"] = "Float16"
    document["state_dict_metadata"]["replicated"].update(
        global_shape=[7], chunk=[{"global_offset": [0], "local_shape": [7]}]
    )
    write_metadata(folder, document)
    text = refusal(folder)
    assert f"'model.w': expected fp16 [2, 6], as it says of the chunk, found fp32 [2, 6] in {FIRST}" in text
    assert "'replicated': expected int64 [7]" in text


def test_whole_tensors_in_place_of_chunks_are_named_so(folder: Path) -> None:
    arrays = {name: array for name, (array, _) in TENSORS.items() if not name.startswith("adam")}
    write_file(folder / FIRST, arrays)
    assert f"found fp32 [4, 12] in {FIRST}, the whole tensor" in refusal(folder)


def test_a_tensor_that_its_file_lacks_is_told(folder: Path) -> None:
    write_file(folder / FIRST, {"model.w": TENSORS["model.w"][0][:2, :6]})
    assert f"expected a chunk int64 [6] there, found no such tensor in {FIRST}" in refusal(folder)


def test_a_gap_is_told(folder: Path, document: Document) -> None:
    entry = document["state_dict_metadata"]["adam_m.model.w"]
    del entry["chunk"][2], document["storage_data"][repr(("adam_m.model.w", (2,)))]
    write_metadata(folder, document)
    text = refusal(folder)
    assert "found the chunks [1, 12] at [0], [1, 12] at [1], [1, 12] at [3]" in text
    assert "cover [4, 12] without a gap or an overlap" in text


def test_an_overlap_that_is_no_replica_is_told(folder: Path, document: Document) -> None:
    for chunk in document["state_dict_metadata"]["adam_m.model.w"]["chunk"]:
        chunk["local_shape"] = [2, 12]
    write_metadata(folder, document)
    assert "without a gap or an overlap" in refusal(folder)


def test_a_chunk_without_a_file_and_a_file_without_a_chunk_are_told(folder: Path, document: Document) -> None:
    storage = document["storage_data"]
    storage[repr(("gone", (0,)))] = storage.pop(repr(("model.w", (3,))))
    storage[repr(("scalar", (1,)))] = storage[repr(("scalar", (0,)))]
    write_metadata(folder, document)
    text = refusal(folder)
    assert "no file for its chunk [3]" in text
    assert "a chunk [0] of 'gone'" in text
    assert "a chunk [1] of 'scalar'" in text


def test_one_file_for_two_chunks_is_refused(folder: Path, document: Document) -> None:
    document["storage_data"][repr(("model.w", (1,)))][0]["file_name"] = FIRST
    write_metadata(folder, document)
    assert f"{FIRST} for several chunks" in refusal(folder)


def test_files_that_change_places_for_one_tensor_are_refused(folder: Path, document: Document) -> None:
    first, second = (document["storage_data"][repr(("model.w", (index,)))][0] for index in (0, 1))
    first["file_name"], second["file_name"] = second["file_name"], first["file_name"]
    write_metadata(folder, document)
    assert f"{FIRST} of the ranks 0 and 1" in refusal(folder)


def test_a_layout_that_puts_a_rank_elsewhere_than_its_offset_is_refused(folder: Path, document: Document) -> None:
    document["state_dict_metadata"]["model.w"]["layout"]["tensor_map"] = [0, 1]
    write_metadata(folder, document)
    text = refusal(folder)
    assert "rank 1's chunk at [[0, 2], [6, 12]] by its offset, at [[2, 4], [0, 6]] by its layout" in text


def test_a_tensor_among_weights_and_optimizer_states_is_refused(folder: Path, document: Document) -> None:
    other = file_name("adam", 0, RANKS)
    write_file(folder / other, {"adam_m.model.w": TENSORS["adam_m.model.w"][0][:1], "replicated": np.arange(6)})
    write_file(folder / FIRST, {
        name: array[:2, :6] if name == "model.w" else array[:1] if array.shape == (4,) else array
        for name, (array, _) in TENSORS.items() if name not in ("replicated", "adam_m.model.w")
    })  # fmt: skip
    document["storage_data"][repr(("replicated", (0,)))][0]["file_name"] = other
    write_metadata(folder, document)
    assert "it in files of one kind" in refusal(folder)


def test_disagreements_missing_files_and_damage_are_told_together(folder: Path, document: Document) -> None:
    (folder / file_name("model", 1, RANKS)).unlink()
    (folder / file_name("model", 2, RANKS)).write_bytes(b"\x05")
    (folder / "more.safetensors").write_bytes(b"")
    document["state_dict_metadata"]["scalar"]["properties"]["dtype"] = "Int8"
    write_metadata(folder, document)
    text = refusal(folder, CorruptInputError)
    for part in ("model-0000001-", "model-0000002-", "more.safetensors", "'scalar': expected int8 []"):
        assert part in text


def test_an_iteration_travels_to_other_processes(folder: Path) -> None:
    iteration = read_iteration(folder)
    assert pickle.loads(pickle.dumps(dict(iteration.tensors))) == iteration.tensors


def test_metadata_that_was_changed_anywhere_is_read_or_refused_but_never_a_crash(
    folder: Path, document: Document
) -> None:
    """Values are swapped for others of the document and for hostile ones; what is read then still covers exactly."""
    pool: list[Any] = [None, True, -1, 0, 1, 2, 2**63, 1.5, "", "x", [], {}, [0], [[0]], {"file_name": FIRST}]
    pool += [value for _, _, value in _places(document)]
    for seed in range(400):
        chance = random.Random(seed)
        damaged = copy.deepcopy(document)
        for _ in range(chance.randint(1, 3)):
            holder, key, _ = chance.choice(list(_places(damaged)))
            if chance.random() < 0.25:
                del holder[key]
            elif isinstance(holder, dict) and chance.random() < 0.2:
                holder[str(chance.choice(pool))] = holder.pop(key)
            else:
                holder[key] = copy.deepcopy(chance.choice(pool))
        write_metadata(folder, damaged)
        _read_or_refused(folder)


def test_numbers_and_file_names_that_were_changed_are_read_or_refused_but_never_a_crash(
    folder: Path, document: Document
) -> None:
    """The form stays, so that what is checked is what the numbers mean."""
    names = [file_name(kind, rank, RANKS) for kind in ("model", "adam") for rank in range(RANKS)]
    for seed in range(300):
        chance = random.Random(seed)
        changed = copy.deepcopy(document)
        places = [
            place for place in _places(changed) if type(place[2]) is int or str(place[2]).endswith(".safetensors")
        ]
        for _ in range(chance.randint(1, 2)):
            holder, key, value = chance.choice(places)
            holder[key] = chance.randint(0, 13) if type(value) is int else chance.choice(names)
        write_metadata(folder, changed)
        _read_or_refused(folder)


def test_bytes_that_were_changed_anywhere_are_read_or_refused_but_never_a_crash(folder: Path) -> None:
    files = sorted(folder.iterdir())
    for seed in range(200):
        chance = random.Random(seed)
        file = chance.choice([folder / "metadata.json", chance.choice(files)])
        sound = file.read_bytes()
        damaged = bytearray(sound)
        for _ in range(chance.randint(1, 3)):
            start = chance.randint(0, len(damaged))
            damaged[start : start + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
        file.write_bytes(damaged)
        _read_or_refused(folder)
        file.write_bytes(sound)


def _read_or_refused(folder: Path) -> None:
    try:
        iteration = read_iteration(folder)
    except PetSurgeryError as error:
        assert error.exit_code in (3, 4, 5)  # noqa: PT017 - a change may be harmless
    else:
        for tensor in iteration.tensors.values():
            assert isinstance(tensor, GlobalTensor)
            joined(tensor)


def _places(value: Any) -> Any:
    """Every (container, key, value) of a document."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield value, key, member
        yield from _places(member)

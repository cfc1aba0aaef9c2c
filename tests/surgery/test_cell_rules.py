"""Which cells a rule selects. `tests/mindspore/network` compares with MindFormers on real networks."""

from __future__ import annotations

import pytest

from surgery.cell_rules import CellFacts, CellRule, SkippedCell, select_cells
from surgery.errors import MismatchError

LIST = "a CellList, which is no linear layer"
NORM = "a LayerNorm, which is no linear layer"
CELLS = [
    CellFacts("model", "a LlamaModel, which is no linear layer"),
    CellFacts("model.layers", LIST),
    *(
        cell
        for layer in range(2)
        for cell in (
            CellFacts(f"model.layers.{layer}", "a Layer, which is no linear layer"),
            CellFacts(f"model.layers.{layer}.attention", "an Attention, which is no linear layer"),
            CellFacts(f"model.layers.{layer}.attention.wq"),
            CellFacts(f"model.layers.{layer}.attention.wk"),
            CellFacts(f"model.layers.{layer}.norm", NORM),
        )
    ),
    CellFacts("lm_head"),
]


def selected(target: str, *exclude: str, body: str = "model") -> list[str]:
    paths = select_cells(CellRule(target, exclude), CELLS, body=body).paths
    return [path.removeprefix("model.layers.").replace(".attention.", ".") for path in paths]


@pytest.mark.parametrize(
    ("target", "exclude", "expected"),
    [
        (".*wq", (), ["0.wq", "1.wq"]),
        (".*wq|.*wk", (), ["0.wq", "0.wk", "1.wq", "1.wk"]),
        ("w", (), ["0.wq", "0.wk", "1.wq", "1.wk"]),  # re.match needs no end
        ("w", ("0",), ["1.wq", "1.wk"]),
        ("w", ("wq",), ["0.wk", "1.wk"]),
        ("w", (r"model\.layers\.0\.attention\.wq",), ["0.wk", "1.wq", "1.wk"]),
        (r"model\.layers\.0\.attention\.w.", (), ["0.wq", "0.wk"]),
        (r".*\.1\..*", (), ["1.wq", "1.wk"]),
        (r".*\.w.", ("0",), ["1.wq", "1.wk"]),
        (r"lm_head|.*\.wq", (), ["0.wq", "1.wq", "lm_head"]),
    ],
)
def test_rules_on_names_and_on_paths(target: str, exclude: tuple[str, ...], expected: list[str]) -> None:
    assert selected(target, *exclude) == expected


def test_a_name_is_tried_from_its_beginning() -> None:
    with pytest.raises(MismatchError, match="Near names: wq"):
        selected("q")


def test_what_lies_in_a_selected_cell_is_not_looked_at() -> None:
    with pytest.raises(MismatchError, match=r"inside of 'model\.layers'"):
        selected(".*")


def test_what_is_matched_and_left_is_reported_with_the_reason() -> None:
    result = select_cells(CellRule("w|norm|lm_head", ("wk",)), CELLS, body="model")
    reasons = {cell.path: cell.reason for cell in result.skipped}
    assert reasons["model.layers.0.norm"] == f"is {NORM}"
    assert "exclude_layers (wk" in reasons["model.layers.0.attention.wk"]
    assert "outside of 'model'" in reasons["lm_head"]
    assert SkippedCell("lm_head", reasons["lm_head"]) in result.skipped


def test_without_a_body_the_networks_own_cells_are_tried() -> None:
    assert selected("lm_head", body="") == ["lm_head"]


@pytest.mark.parametrize(
    ("target", "near"),
    [(".*wqq", "wq"), (".*lm_haed|.*wkk", "wk"), (r"model\.layers\.0\.atention\.wq", "model.layers.0.attention.wq")],
)
def test_a_rule_that_matches_nothing_lists_near_names(target: str, near: str) -> None:
    with pytest.raises(MismatchError, match=f"matches the .* of no linear layer.*Near names:.*{near}"):
        selected(target)


def test_a_rule_that_resembles_nothing_lists_linear_layers() -> None:
    with pytest.raises(MismatchError, match="Linear layers: wq, wk"):
        selected(".*zzz")


def test_a_network_without_linear_layers_says_so() -> None:
    with pytest.raises(MismatchError, match="without a linear layer"):
        select_cells(CellRule(".*"), [CellFacts("norm", NORM)])


def test_an_escaped_backslash_asks_for_no_dot() -> None:
    assert not CellRule(r"w\\.").is_on_paths
    assert CellRule(r"a\.b").is_on_paths
    assert CellRule(r"a[.]b").is_on_paths
    assert not CellRule(".*dense*|.*linear*|.*mapping*|.*projection*").is_on_paths

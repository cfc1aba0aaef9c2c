"""Pages as files: escaping, the report in them, determinism, and what is refused before any work."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import run_here

from ckpt_tools import MergeReport, open_checkpoint, save_checkpoint
from ckpt_tools.cli.merge import merge_command
from ckpt_tools.pages import check_page, write_page
from ckpt_tools.reports import DroppedTensor
from surgery.errors import MissingExtraError, OutputExistsError, PetSurgeryError, UsageError

HOSTILE = (
    "<script>alert(1)</script>",
    "\"' onmouseover='alert(1)' x=\"",
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "$\\frac{a}{b}$ ${7*7} {{ 7*7 }} {% raw %}",
    "line\nbreak\u202etxt\x00\udc80",
)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def page_of(report: MergeReport) -> str:
    write_page(report, "page.html", force=True)
    return Path("page.html").read_text(encoding="utf-8")


def json_of(page: str) -> dict[str, object]:
    match = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def tags_of(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(page)
    return parser.tags


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text_wherever_it_comes(report: MergeReport, name: str) -> None:
    weights = tuple(
        replace(weight, name=f"model.layers.{number}.{name}", adapters=(replace(weight.adapters[0], adapter=name),))
        for number, weight in enumerate(report.weights)
    )
    hostile = replace(
        report,
        base=name,
        output=name,
        warnings=(name,),
        weights=weights,
        copied=(name,),
        dropped=(DroppedTensor(name, name, name),),
    )
    page = page_of(hostile)
    tags = tags_of(page)
    assert [attributes.get("type") for tag, attributes in tags if tag == "script"] == ["application/json", None]
    assert not any(tag in ("img", "iframe", "object") for tag, _ in tags)
    assert not any(key.startswith("on") for _, attributes in tags for key in attributes)
    assert json_of(page) == json.loads(hostile.to_json())
    assert "\x00" not in page
    assert "\u202e" not in page


def test_the_report_is_in_the_page_as_the_command_prints_it(report: MergeReport) -> None:
    assert json_of(page_of(report)) == json.loads(report.to_json())


def test_the_heatmaps_have_the_reports_numbers(report: MergeReport) -> None:
    cells = [(a["data-name"], float(a["data-value"] or "")) for _, a in tags_of(page_of(report)) if "data-value" in a]
    expected = [(w.name, w.relative_delta) for w in report.weights] + [
        (w.name, w.unchanged_share) for w in report.weights
    ]
    assert sorted(cells) == sorted(expected)
    assert len(cells) == 8


def test_the_same_report_gives_the_same_bytes(report: MergeReport) -> None:
    assert page_of(report) == page_of(report)


def test_a_users_settings_of_matplotlib_do_not_show(report: MergeReport) -> None:
    import matplotlib

    before = page_of(report)
    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 30, "text.color": "red"}):
        assert page_of(report) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_the_policy_allows_the_pages_own_style_and_script_alone(report: MergeReport) -> None:
    page = page_of(report)
    (policy,) = (a["content"] or "" for tag, a in tags_of(page) if a.get("http-equiv") == "Content-Security-Policy")
    parts = dict(part.split(" ", 1) for part in policy.split("; "))
    for name, pattern in (("style-src", r"<style>(.*?)</style>"), ("script-src", r"<script>(.*?)</script>")):
        (text,) = re.findall(pattern, page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert parts[name] == f"'sha256-{digest}'"
    assert parts["default-src"] == "'none'"
    assert not any("style" in attributes for _, attributes in tags_of(page))


def test_every_identifier_is_there_once_and_every_reference_finds_its(report: MergeReport) -> None:
    tags = tags_of(page_of(report))
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert sorted(ids, key=str) == sorted(set(ids), key=str)
    wanted = [a.get("href") for _, a in tags if (a.get("href") or "").startswith("#")]
    wanted += [f"#{one}" for _, a in tags for one in (a.get("aria-labelledby") or "").split()]
    assert {f"#{one}" for one in ids} >= set(wanted)


def test_a_plain_merge_has_nothing_to_look_at(report: MergeReport) -> None:
    assert "Nothing to look at" in page_of(report)


def test_warnings_and_outliers_are_what_to_look_at(report: MergeReport) -> None:
    first = replace(report.weights[0], relative_delta=50.0, unchanged_share=0.95)
    page = page_of(replace(report, weights=(first, *report.weights[1:]), warnings=("mind this",)))
    assert "3 things to look at" in page
    assert "mind this" in page


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra_nothing_is_done(
    report: MergeReport, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match="pip install 'pet-surgery\\[html\\]'"):
        check_page("page.html")
    assert run_here(merge_command, "base.ckpt", "lora.ckpt", "--alpha", "8", "-o", "x.ckpt", "--html", "x.html") == 2
    assert "pip install 'pet-surgery[html]'" in capsys.readouterr().err
    assert not Path("x.ckpt").exists()


@pytest.mark.parametrize(
    ("html", "error"),
    [
        ("", UsageError),
        ("merged.ckpt", UsageError),
        ("page.txt", UsageError),
        ("nowhere/page.html", UsageError),
        ("input.html", UsageError),
        ("folder/page.html", UsageError),
        ("link.html", OutputExistsError),
        ("there.html", OutputExistsError),
    ],
)
def test_a_path_that_is_no_place_for_a_page_is_refused(
    report: MergeReport, html: str, error: type[PetSurgeryError]
) -> None:
    Path("folder").mkdir()
    Path("input.html").touch()
    Path("there.html").write_text("another page")
    Path("link.html").symlink_to("there.html")
    with pytest.raises(error):
        check_page(html, ["input.html", "folder"], force=html in ("input.html", "link.html", "merged.ckpt"))
    assert Path("there.html").read_text() == "another page"


def test_an_existing_page_stops_the_command_before_any_work_and_is_replaced_by_force(report: MergeReport) -> None:
    Path("page.html").write_text("another page")
    command = ("base.ckpt", "lora.ckpt", "--alpha", "8", "-o", "x.ckpt", "--html", "page.html")
    assert run_here(merge_command, *command) == 8
    assert not Path("x.ckpt").exists()
    assert Path("page.html").read_text() == "another page"
    assert run_here(merge_command, *command, "--force") == 0
    assert json_of(Path("page.html").read_text(encoding="utf-8"))["output"] == "x.ckpt"


def test_what_a_run_left_that_was_killed_behind_its_page_goes_when_the_page_is_asked_for_again(
    report: MergeReport,
) -> None:
    Path("page.html").write_text("the page of the run that was killed")
    left = Path(".page.html.pet-surgery")
    (left / "content").mkdir(parents=True)
    with pytest.raises(OutputExistsError):
        check_page("page.html")
    assert not left.exists()


def test_a_dry_run_writes_the_page_alone(report: MergeReport) -> None:
    command = ("base.ckpt", "lora.ckpt", "--alpha", "8", "-o", "x.ckpt", "--html", "page.html", "--dry-run")
    assert run_here(merge_command, *command) == 0
    assert "Would merge into x.ckpt" in Path("page.html").read_text(encoding="utf-8")
    assert not Path("x.ckpt").exists()


def test_weights_with_nan_are_said_and_the_others_drawn(
    report: MergeReport, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {name: tensor.read_all() for name, tensor in open_checkpoint("lora.ckpt").tensors.items()}
    first = next(iter(parts))
    save_checkpoint("diverged.ckpt", parts | {first: np.full_like(parts[first], np.nan)})
    options = ("--alpha", "8", "--allow-nonfinite", "-o", "x.ckpt", "--html", "page.html")
    assert run_here(merge_command, "base.ckpt", "diverged.ckpt", *options) == 0
    out = capsys.readouterr().out
    assert "nan" not in out
    assert "; NaN or Inf in 1 weights" in out
    page = Path("page.html").read_text(encoding="utf-8")
    assert "the update of 1 weight has NaN or Inf" in page
    assert len([a for _, a in tags_of(page) if "data-value" in a]) == 2 * len(report.weights) - 1


def test_a_page_of_eighty_layers_stays_small(report: MergeReport) -> None:
    modules = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    modules += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    weights = tuple(
        replace(report.weights[0], name=f"model.layers.{layer}.{module}.weight", relative_delta=(layer + 1) / 1e3)
        for layer in range(80)
        for module in modules
    )
    assert len(page_of(replace(report, weights=weights)).encode()) < 2_000_000

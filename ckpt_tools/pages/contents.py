"""Which function says what the page of which report holds. A new kind of report joins here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckpt_tools.pages.blocks import Content
from ckpt_tools.pages.combine import combine_content
from ckpt_tools.pages.inject import inject_content
from ckpt_tools.pages.inspect import inspect_content
from ckpt_tools.pages.merge import merge_content
from ckpt_tools.pages.split import split_content
from ckpt_tools.pages.transform import transform_content
from ckpt_tools.pages.verify import manifest_content, verify_content
from ckpt_tools.reports import (
    CombineReport,
    InjectReport,
    InspectReport,
    ManifestReport,
    MergeReport,
    Report,
    SplitReport,
    TransformReport,
    VerifyReport,
)

__all__ = ["content_of"]

_CONTENTS: dict[type[Report], Callable[[Any], Content]] = {
    CombineReport: combine_content,
    InjectReport: inject_content,
    InspectReport: inspect_content,
    ManifestReport: manifest_content,
    MergeReport: merge_content,
    SplitReport: split_content,
    TransformReport: transform_content,
    VerifyReport: verify_content,
}


def content_of(report: Report) -> Content:
    """What the page of a report says.

    Raises:
        TypeError: There is no page of such a report.
    """
    if type(report) not in _CONTENTS:
        raise TypeError(f"there is no page of a {type(report).__name__}")
    return _CONTENTS[type(report)](report)

"""What an operation did, for people and for programs: a module a command."""

from ckpt_tools.reports.base import SCHEMA, DroppedTensor, OutputReport, Report
from ckpt_tools.reports.inject import AddedParameter, InjectReport, NearMiss
from ckpt_tools.reports.merge import AdapterReport, AdapterUse, FoldedWeight, MergeReport
from ckpt_tools.reports.split import ExtractedLayer, SplitParameter, SplitReport
from ckpt_tools.reports.transform import TransformedTensor, TransformReport
from ckpt_tools.reports.verify import Offender, VerifiedWeight, VerifyReport

__all__ = [
    "SCHEMA",
    "AdapterReport",
    "AdapterUse",
    "AddedParameter",
    "DroppedTensor",
    "ExtractedLayer",
    "FoldedWeight",
    "InjectReport",
    "MergeReport",
    "NearMiss",
    "Offender",
    "OutputReport",
    "Report",
    "SplitParameter",
    "SplitReport",
    "TransformReport",
    "TransformedTensor",
    "VerifiedWeight",
    "VerifyReport",
]

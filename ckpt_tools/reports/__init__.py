"""What an operation did, for people and for programs: a module a command."""

from ckpt_tools.reports.base import SCHEMA, DroppedTensor, OutputReport, Report
from ckpt_tools.reports.combine import CombinedParameter, CombineReport
from ckpt_tools.reports.inject import AddedParameter, InjectReport, NearMiss
from ckpt_tools.reports.inspect import (
    ComparedTensor,
    Comparison,
    InspectedFamily,
    InspectedLayout,
    InspectedPair,
    InspectedTensor,
    InspectedTotal,
    InspectReport,
    OtherShape,
    RankGroup,
    Spectrum,
)
from ckpt_tools.reports.manifest import ManifestReport
from ckpt_tools.reports.merge import AdapterReport, AdapterUse, CombinedLayer, FoldedWeight, MergeReport
from ckpt_tools.reports.served import AdapterSimilarity, ServedAdapter
from ckpt_tools.reports.split import ExtractedLayer, SplitParameter, SplitReport
from ckpt_tools.reports.transform import TransformedTensor, TransformReport
from ckpt_tools.reports.unmerge import UnmergeReport
from ckpt_tools.reports.verify import Offender, VerifiedWeight, VerifyReport

__all__ = [
    "SCHEMA",
    "AdapterReport",
    "AdapterSimilarity",
    "AdapterUse",
    "AddedParameter",
    "CombineReport",
    "CombinedLayer",
    "CombinedParameter",
    "ComparedTensor",
    "Comparison",
    "DroppedTensor",
    "ExtractedLayer",
    "FoldedWeight",
    "InjectReport",
    "InspectReport",
    "InspectedFamily",
    "InspectedLayout",
    "InspectedPair",
    "InspectedTensor",
    "InspectedTotal",
    "ManifestReport",
    "MergeReport",
    "NearMiss",
    "Offender",
    "OtherShape",
    "OutputReport",
    "RankGroup",
    "Report",
    "ServedAdapter",
    "Spectrum",
    "SplitParameter",
    "SplitReport",
    "TransformReport",
    "TransformedTensor",
    "UnmergeReport",
    "VerifiedWeight",
    "VerifyReport",
]

"""Named label sets: written once, computed once, kept in the durable state, and used by name in requests."""

from service.label_sets.definition import NAME, Definition, check_definition
from service.label_sets.ready_sets import ReadySet
from service.label_sets.status import Condition, LabelSetStatus, ModelStatus
from service.label_sets.use_cases import LabelSets

__all__ = [
    "NAME",
    "Condition",
    "Definition",
    "LabelSetStatus",
    "LabelSets",
    "ModelStatus",
    "ReadySet",
    "check_definition",
]

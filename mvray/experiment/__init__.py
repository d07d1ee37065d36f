"""What an experiment is, in words: a job, its steps, their settings, and their names and ids. Imports nothing heavy."""

from mvray.experiment import job_file
from mvray.experiment.contracts import (
    LABELS,
    Batch,
    Facts,
    Frame,
    FrameGenerator,
    FunctionMetric,
    Generator,
    GeneratorConfig,
    Instances,
    MethodConfig,
    Metric,
    Read,
    Segmenter,
    SegmenterConfig,
)
from mvray.experiment.exhibits import Column, Groups, Matches, Row, Sheet, Table
from mvray.experiment.fields import ADDED, FILE, NOT_IDENTITY, check_above_0
from mvray.experiment.identity import described, identify, without_files
from mvray.experiment.inputs import ALL, PAD, PEOPLE, PEOPLE_AND_OBJECTS, STRETCH, Clips, Masks, Pictures
from mvray.experiment.job import Job
from mvray.experiment.job_file import Code, Packed, codes_of
from mvray.experiment.overrides import replaced
from mvray.experiment.provenance import NOTE, git_commit, shipped, versions
from mvray.experiment.search_space import Choice, Domain, Integers, LogUniform, Search, Uniform, as_text, set_line
from mvray.experiment.serialisation import decoded, encoded, flat
from mvray.experiment.settings import Settings, kind_of, kinds
from mvray.experiment.source import CLASSES, IMAGE, MAP, UNSEEN, BadRecord, Index, Source
from mvray.experiment.steps import LAST, Data, Generate, Measure, Optim, Scale, Step, Train

__all__ = [
    "ADDED",
    "ALL",
    "CLASSES",
    "FILE",
    "IMAGE",
    "LABELS",
    "LAST",
    "MAP",
    "NOTE",
    "NOT_IDENTITY",
    "PAD",
    "PEOPLE",
    "PEOPLE_AND_OBJECTS",
    "STRETCH",
    "UNSEEN",
    "BadRecord",
    "Batch",
    "Choice",
    "Clips",
    "Code",
    "Column",
    "Data",
    "Domain",
    "Facts",
    "Frame",
    "FrameGenerator",
    "FunctionMetric",
    "Generate",
    "Generator",
    "GeneratorConfig",
    "Groups",
    "Index",
    "Instances",
    "Integers",
    "Job",
    "LogUniform",
    "Masks",
    "Matches",
    "Measure",
    "MethodConfig",
    "Metric",
    "Optim",
    "Packed",
    "Pictures",
    "Read",
    "Row",
    "Scale",
    "Search",
    "Segmenter",
    "SegmenterConfig",
    "Settings",
    "Sheet",
    "Source",
    "Step",
    "Table",
    "Train",
    "Uniform",
    "as_text",
    "check_above_0",
    "codes_of",
    "decoded",
    "described",
    "encoded",
    "flat",
    "git_commit",
    "identify",
    "job_file",
    "kind_of",
    "kinds",
    "replaced",
    "set_line",
    "shipped",
    "versions",
    "without_files",
]

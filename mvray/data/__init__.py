"""Samples: the way from files in a public layout to batches, and the columns that are joined to them."""

from mvray.data import node_cache, sampler
from mvray.data.bad_files import Unreadable, as_table, check
from mvray.data.columns import Joined, joined
from mvray.data.dataset import SampleDataset
from mvray.data.fingerprint import fingerprint
from mvray.data.frames import frames
from mvray.data.geometry import ClipView, View, seen
from mvray.data.loader import dataset, loader, readable
from mvray.data.tables import metadata_of, read_table, write_table

__all__ = [
    "ClipView",
    "Joined",
    "SampleDataset",
    "Unreadable",
    "View",
    "as_table",
    "check",
    "dataset",
    "fingerprint",
    "frames",
    "joined",
    "loader",
    "metadata_of",
    "node_cache",
    "read_table",
    "readable",
    "sampler",
    "seen",
    "write_table",
]

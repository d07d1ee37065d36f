"""Samples: the way from files in a public layout to batches, and the columns that are joined to them."""

from mvray.data import node_cache, rle, sampler
from mvray.data.bad_files import as_table, check
from mvray.data.columns import ColumnReader, as_png, classes_field, map_field, open_columns
from mvray.data.dataset import SampleDataset
from mvray.data.decoding import Unreadable, open_upright, pixels_of
from mvray.data.fingerprint import fingerprint
from mvray.data.frames import frames
from mvray.data.geometry import PADDING, ClipView, View, cut_view
from mvray.data.loader import dataset, loader, readable_samples
from mvray.data.palette import colours, palette_png
from mvray.data.tables import metadata_of, read_table, write_table

__all__ = [
    "PADDING",
    "ClipView",
    "ColumnReader",
    "SampleDataset",
    "Unreadable",
    "View",
    "as_png",
    "as_table",
    "check",
    "classes_field",
    "colours",
    "cut_view",
    "dataset",
    "fingerprint",
    "frames",
    "loader",
    "map_field",
    "metadata_of",
    "node_cache",
    "open_columns",
    "open_upright",
    "palette_png",
    "pixels_of",
    "read_table",
    "readable_samples",
    "rle",
    "sampler",
    "write_table",
]

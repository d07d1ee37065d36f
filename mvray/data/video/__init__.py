"""Exact frames out of any video file."""

from mvray.data.video.frame_table import FrameTable
from mvray.data.video.ranges import Ranges
from mvray.data.video.video import Video

__all__ = ["FrameTable", "Ranges", "Video"]

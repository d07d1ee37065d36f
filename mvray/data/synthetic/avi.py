"""Write short videos as UCF101 has them: MPEG-4 part 2 (XVID) in AVI, 25 frames a second, no sound."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

FRAMES_PER_S = 25
QUANTISER = 4
"""From 2 (largest file) to 31: mild artefacts at 4."""


def write_avi(path: Path, frames_HW3: Iterable[np.ndarray], size: tuple[int, int], keyframe_interval: int) -> None:
    """Encode RGB frames of ``size`` (width, height), uint8, to ``path``. The same frames give the same bytes."""
    with av.open(str(path), "w", format="avi", options={"fflags": "+bitexact"}) as out:
        options = {"qmin": str(QUANTISER), "qmax": str(QUANTISER), "flags": "+bitexact", "threads": "1"}
        stream = out.add_stream("mpeg4", rate=FRAMES_PER_S, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = keyframe_interval
        stream.codec_context.codec_tag = "XVID"
        for frame_HW3 in frames_HW3:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HW3, format="rgb24")))
        out.mux(stream.encode(None))

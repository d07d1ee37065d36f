"""Sample data sets, composed of drawings that may be shipped, in public layouts."""

from mvray.data.synthetic import actions, comics, faces, segments

__all__ = ["actions", "comics", "faces", "segments"]

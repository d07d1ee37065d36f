"""What finds instances in a frame: one file per segmenter, with its settings (Config)."""

from mvray.generators.segmenters import detectron2, files, mask_rcnn

__all__ = ["detectron2", "files", "mask_rcnn"]

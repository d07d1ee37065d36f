"""What is made once per sample: one file per generator, with its settings (Config)."""

from mvray.generators import features, gradcam, instance_masks, label_maps, map_scores, predictions, saliency
from mvray.generators.features import Features

__all__ = ["Features", "features", "gradcam", "instance_masks", "label_maps", "map_scores", "predictions", "saliency"]

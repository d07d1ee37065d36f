"""Object-ABN with masks that a network of ours makes: jobs/object_abn.py after jobs/segmenter.py.

Paper: see jobs/object_abn.py; Mask R-CNN: He et al. 2017 (arXiv 1703.06870).
Full:  mvray run jobs/object_abn_segmented.py --data DATA --workers 4
       (videos in UCF101's layout with instances.json; not run by us)
Tiny:  mvray run jobs/object_abn_segmented.py --tiny --data samples/actions
Score: none of a paper; IoU and pointing are against the exact masks.
"""

from object_abn import experiment
from segmenter import LEAST_SCORE, steps

from mvray import Job
from mvray.generators.segmenters import mask_rcnn


def job(tiny: bool = False) -> Job:
    """The segmenter is trained on the training list; its masks of every 4th frame sharpen the attention."""
    _, truth, segmenter = steps(tiny)
    masks = mask_rcnn.Config(of=segmenter)
    return experiment(tiny, masks, "object_abn_segmented", every=4, least_score=LEAST_SCORE, truth=truth)

"""A small instance segmenter, trained on videos that have instance masks beside them.

Paper: He, Gkioxari, Dollar, Girshick 2017, "Mask R-CNN" (arXiv 1703.06870).
Full:  mvray run jobs/segmenter.py --data DATA --workers 4
       (torchvision's ResNet50-FPN on videos in UCF101's layout with instances.json, a YouTube-VIS file; not run by us)
Tiny:  mvray run jobs/segmenter.py --tiny --data samples/actions
       (a small Mask R-CNN on sample actions, 2 workers; pixels' classes first, then instances; about 14 minutes on
       two CPU cores)
Score: none of a paper. IoU of its masks with the exact ones on the test list's videos, which show other actors.

With it masks can be made without weights from elsewhere: jobs/object_abn_segmented.py uses this step.
"""

from dataclasses import replace

from mvray import Clips, Column, Data, Generate, Job, Masks, Measure, Optim, Row, Scale, Table, Train, metrics
from mvray.data.readers import UCF101
from mvray.generators import instance_masks, predictions
from mvray.generators.segmenters import files
from mvray.methods import mask_rcnn

LEAST_SCORE = 0.1
"""From which score on something found counts."""


def steps(tiny: bool) -> tuple[Data, Generate, Train]:
    """The videos, their true masks, and the segmenter that learns from them."""
    if tiny:
        clips = Data(UCF101(), Clips(112, 112, frames=1, every=1, short_side=(112, 144), test_side=120))
        scale = Scale(workers=2, loader_workers=1, checkpoint_steps=20)
    else:
        clips = Data(UCF101(), Clips(240, 240, frames=2, every=16, short_side=(240, 320), test_side=240))
        scale = Scale(workers=4, loader_workers=6)
    truth = Generate("truth", instance_masks.Config(files.Config("instances.json")), Data(UCF101()), scale)
    data = clips.with_masks(truth, Masks(union=False))
    return data, truth, _small(data, scale) if tiny else _whole(data, scale)


def _whole(data: Data, scale: Scale) -> Train:
    method = mask_rcnn.Config(network="maskrcnn_resnet50_fpn", distort=0.3, least_score=LEAST_SCORE)
    optim = Optim(lr=0.02, momentum=0.9, weight_decay=1e-4, batch_size=16, epochs=24, schedule="cosine")
    return Train("segmenter", method, data, optim, select="mask_iou", scale=scale)


def _small(data: Data, scale: Scale) -> Train:
    """Outlines first: a step over pixels' classes is half of the work of one over instances."""
    method = mask_rcnn.Config(distort=0.5, paste=0.5, least_score=LEAST_SCORE)
    optim = Optim(
        name="adamw",
        lr=0.004,
        weight_decay=1e-4,
        batch_size=8,
        epochs=150,
        schedule="cosine",
        warmup_epochs=12,
        clip_norm=5.0,
    )
    pixels = Train("pixels", replace(method, learns=mask_rcnn.PIXELS), data, optim, select="union_iou", scale=scale)
    optim = replace(optim, lr=0.002, epochs=50, warmup_epochs=4)
    return Train("segmenter", method, data, optim, start_from=pixels, select="mask_iou", scale=scale)


def job(tiny: bool = False) -> Job:
    """Train it, and compare its masks with the true ones."""
    data, _, segmenter = steps(tiny)
    predicted = Generate("found", predictions.Config(of=segmenter, batch_size=8), data.test, segmenter.scale)
    score = Measure("score", Data(data.source, data.pictures).test.with_columns(predicted), (metrics.MaskAgreement(),))
    table = Table(
        rows=(Row("small Mask R-CNN" if tiny else "Mask R-CNN", score),),
        columns=(
            Column("test/union_iou", "IoU of all masks, %", 100),
            Column("test/mask_iou", "IoU per instance, %", 100),
            Column("test/person_iou", "IoU per person, %", 100),
        ),
        note="On the test list's videos, against the exact masks. An instance that is not found counts 0.",
    )
    return Job("segmenter", (score,), table)

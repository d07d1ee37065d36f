"""Sharp attention for action recognition: instance masks and Object-ABN.

Paper: Nitta, Hirakawa, Fujiyoshi, Tamaki (Nagoya Institute of Technology, Chubu University), "Object-ABN".
       Attention Branch Network: Fukui et al. 2019. X3D: Feichtenhofer 2020 (arXiv 2004.04730).
Full:  mvray run jobs/object_abn.py --data UCF101 --workers 4 \\
           --set abn.method.weights=X3D_M.pyth --set object-abn.method.weights=X3D_M.pyth
       (needs Detectron2, see infra/README.md; UCF101 split 1, 50 epochs twice; not run by us)
Tiny:  mvray run jobs/object_abn.py --tiny --data samples/actions
       (sample actions, 2 workers; masks from the samples' own file; under 8 minutes on two CPU cores)
       mvray run jobs/object_abn_segmented.py --tiny --data samples/actions   makes the masks with a network
Score: top-1, top-5 (%), entropy (bits): ABN 93.96, 99.15, 3.064; Object-ABN 93.62, 99.26, 2.026 (the paper's).

The masks are the union of Detectron2's people and objects in each frame of a clip. Both networks are the
same X3D-M with an attention branch after res4; they differ in lambda_mask alone, 0 and 10.

Chosen, as the paper does not say: the generated masks' least score 0.5, all classes, no dilation; a
validation share of 10 % of the training list by whole groups, to select the epoch by its top-1 (the paper
reports on the test list, and so does this); batch size 32. The tiny job trains a small X3D from random
weights on clips of 8 x 64 x 64.
"""

from mvray import (
    Clips,
    Column,
    Data,
    Generate,
    Job,
    LogUniform,
    Masks,
    Measure,
    Optim,
    Row,
    Scale,
    Search,
    Sheet,
    Table,
    Train,
    metrics,
)
from mvray.data.readers import UCF101
from mvray.experiment import SegmenterConfig
from mvray.generators import instance_masks, predictions
from mvray.generators.segmenters import detectron2, files
from mvray.methods import object_abn

PAPER = {
    "abn": (("test/accuracy", 0.9396), ("test/top5", 0.9915), ("test/attention_entropy_bits", 3.064)),
    "object-abn": (("test/accuracy", 0.9362), ("test/top5", 0.9926), ("test/attention_entropy_bits", 2.026)),
}
TITLES = {"abn": "ABN", "object-abn": "Object-ABN"}
LAMBDA_MASK = {"abn": 0.0, "object-abn": 10.0}


def job(tiny: bool = False) -> Job:
    """ABN and Object-ABN on the test list: accuracy, and how sharp their attention is."""
    segmenter = files.Config("instances.json") if tiny else detectron2.Config()
    return experiment(tiny, segmenter)


def experiment(
    tiny: bool,
    segmenter: SegmenterConfig,
    name: str = "object_abn",
    every: int = 1,
    least_score: float = 0.5,
    truth: Generate | None = None,
) -> Job:
    """The experiment with ``segmenter``'s masks of every ``every``-th frame, of ``least_score`` on.

    Where attention lies is judged by them, or by the masks of ``truth``.
    """
    if tiny:
        clips = Data(UCF101(), Clips(64, 64, frames=8, every=4, short_side=(64, 80), test_side=68))
        network, dropout = "x3d-tiny", 0.2
        optim = Optim(
            name="adamw", lr=0.006, weight_decay=0.05, batch_size=16, epochs=70, schedule="cosine", warmup_epochs=14
        )
        scale = Scale(workers=2, loader_workers=1, checkpoint_steps=20)
    else:
        clips = Data(UCF101(), Clips())
        network, dropout = "x3d-m", 0.5
        optim = Optim(name="adam", lr=1e-4, batch_size=32, epochs=50)
        scale = Scale(workers=4, loader_workers=6)

    masks = Generate("masks", instance_masks.Config(segmenter, every), Data(UCF101()), scale)
    masked = clips.with_masks(masks, Masks(classes="all", least_score=least_score))
    judged = clips.test.with_masks(truth or masks, masked.masks)

    scores: dict[str, Measure] = {}
    trained: dict[str, Train] = {}
    looks: dict[str, Generate] = {}
    for which, lambda_mask in LAMBDA_MASK.items():
        method = object_abn.Config(network, lambda_attention=1.0, lambda_mask=lambda_mask, dropout=dropout)
        data = masked if lambda_mask else clips
        trained[which] = Train(which, method, data, optim, select="top1", scale=scale)
        looks[which] = Generate(f"look-{which}", predictions.Config(of=trained[which]), judged, scale)
        scores[which] = Measure(
            f"score-{which}",
            clips.test.with_columns(looks[which]),
            (metrics.Accuracy(), metrics.Top5(), metrics.AttentionOnMasks()),
        )

    table = Table(
        rows=tuple(Row(TITLES[which], scores[which], PAPER[which]) for which in scores),
        columns=(
            Column("test/accuracy", "top-1 on the test list, %", 100),
            Column("test/top5", "top-5, %", 100),
            Column("test/attention_entropy_bits", "attention entropy, bits", 1, 3),
            Column("test/attention_iou", "attention's IoU with the masks, %", 100),
            Column("test/attention_pointing", "attention's peak in a mask, %", 100),
        ),
        note="Smaller entropy is sharper. IoU and peak are against masks as Object-ABN is trained to follow.",
    )
    sheets = (Sheet("test clips", clips.test, tuple((TITLES[which], looks[which]) for which in looks), samples=6),)
    search = Search(
        step="object-abn",
        space=(("method.lambda_attention", LogUniform(0.1, 10.0)), ("method.lambda_mask", LogUniform(1.0, 100.0))),
        metric="validation/top1",
        grace=20 if tiny else 5,  # the tiny job's rate rises for 14 epochs
    )
    return Job(name, tuple(scores.values()), table, seeds=(0,), sheets=sheets, search=search)

"""Which faces are the same character? An embedding trained with ArcFace, and a threshold on its distances.

Paper: KLab engineers' blog, character faces by metric learning. Deng et al. 2019 (arXiv 1801.07698).
Full:  mvray run jobs/arcface.py --data ANIMEFACE --workers 4 \\
           --set arcface.method.weights=resnet34.pth
       (AnimeFace Character Dataset; not run by us)
Tiny:  mvray run jobs/arcface.py --tiny --data samples/faces
       (sample faces, a small residual network, 2 workers; under 6 minutes on two CPU cores)
Score: F1 .6244, precision .8661, recall .5070 at a threshold on validation; "close figures" on characters
       outside the training set (the source's).

The distance within which two faces count as the same is the one with the best F1 on validation pictures; it
is then used for other pictures of the characters trained with (test) and for characters never seen (unseen).

Chosen, as the source does not say: ImageNet's weights to begin with; 224 x 224 pixels; scale 64 and margin
0.5 rad, the ArcFace paper's; SGD with momentum 0.9, batches of 64 and, in proportion to the paper's 0.1
for 512, a rate of 0.01; 40 epochs; a fifth of the characters unseen. The tiny job takes scale 30, which is enough
to tell 48 characters apart. Its batches are shuffled; method.per_class=4 makes them of 4 pictures of each character.
"""

from mvray import (
    Choice,
    Column,
    Data,
    Generate,
    Job,
    LogUniform,
    Matches,
    Measure,
    Optim,
    Pictures,
    Row,
    Scale,
    Search,
    Table,
    Train,
    Uniform,
)
from mvray.data.readers import AnimeFace
from mvray.generators import features, predictions
from mvray.methods import arcface
from mvray.metrics import Retrieval

PAPER = (("test/f1", 0.6244), ("test/precision", 0.8661), ("test/recall", 0.5070))


def job(tiny: bool = False) -> Job:
    """ArcFace's embeddings on test pictures of seen characters and on unseen ones, beside raw pixels."""
    if tiny:
        faces = Data(AnimeFace(), Pictures(64, 64, flip=True, crop_scale=(0.6, 1.0)))
        method = arcface.Config(network="resnet-small", dimensions=64, margin_rad=0.5, scale=30.0)
        optim = Optim(
            name="adamw", lr=0.003, weight_decay=0.05, batch_size=64, epochs=80, schedule="cosine", warmup_epochs=5
        )
        scale = Scale(workers=2, loader_workers=1, checkpoint_steps=50)
    else:
        faces = Data(AnimeFace(min_pictures=10), Pictures(224, 224, flip=True, crop_scale=(0.6, 1.0)))
        method = arcface.Config(network="resnet34", dimensions=512, margin_rad=0.5, scale=64.0)
        optim = Optim(
            lr=0.01, momentum=0.9, weight_decay=5e-4, batch_size=64, epochs=40, schedule="cosine", warmup_epochs=2
        )
        scale = Scale(workers=4, loader_workers=6)

    trained = Train("arcface", method, faces, optim, select="map_at_r", scale=scale)
    judged = faces.only("validation", "test", "unseen")
    embeddings = Generate("embeddings", predictions.Config(of=trained), judged, scale)
    pixels = Generate("pixels", features.Config(layers=("pixels",)), judged, scale)
    scores = {
        "ArcFace": Measure("score-arcface", judged.with_columns(embeddings), (Retrieval(),)),
        "raw pixels": Measure("score-pixels", judged.with_columns(pixels), (Retrieval("pixels"),)),
    }
    names = {
        "f1": "F1, %",
        "precision": "precision, %",
        "recall": "recall, %",
        "recall_at_1": "recall@1, %",
        "map_at_r": "mAP@R, %",
        "roc_auc": "ROC AUC, %",
    }
    table = Table(
        rows=tuple(Row(name, score, PAPER if name == "ArcFace" else ()) for name, score in scores.items()),
        columns=tuple(
            Column(f"{split}/{metric}", f"{split} {title}", 100)
            for split in ("test", "unseen")
            for metric, title in names.items()
        ),
        note="Pairs within a distance count as the same character; the distance is that with the best F1 on validation "
        "pictures. test: other pictures of the characters trained with. unseen: characters that were not. The "
        "source's figures are on its validation pictures.",
    )
    sheets = tuple(Matches(f"{split} faces", faces.only(split), embeddings) for split in ("test", "unseen"))
    search = Search(
        step="arcface",
        space=(
            ("method.loss", Choice(("arcface", "cosface", "subcenter"))),
            ("method.margin_rad", Uniform(0.1, 0.7)),
            ("method.scale", LogUniform(8.0, 64.0)),
        ),
        metric="validation/map_at_r",
        grace=8 if tiny else 4,
    )
    return Job("arcface", tuple(scores.values()), table, seeds=(0,), sheets=sheets, search=search)

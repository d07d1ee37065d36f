"""Which faces are the same character? DeepCluster features, then UMAP and HDBSCAN.

Paper: Yanagisawa, Kyogoku, Jain, Watanabe (Waseda University), features of manga characters' faces by DeepCluster.
       DeepCluster: Caron et al. 2018 (arXiv 1807.05520). UMAP: McInnes et al. 2018. HDBSCAN: Campello et al. 2013.
Full:  mvray run jobs/deepcluster.py --data Manga109 --workers 4
       (VGG16, 200 epochs for each of three models; not run by us: Manga109 must be asked for)
       --set source.unseen_works=A,B,... names the works that are grouped; else they are drawn
Tiny:  mvray run jobs/deepcluster.py --tiny --data samples/comics
       (faces of sample comics, a small VGG, 2 workers; under 8 minutes on two CPU cores)
Score: AMI of the groups with the characters, mean over 11 works that were not trained on, by layer: dc .168 to .418,
       ft .238 to .362, ft+dc .278 to .427 (fc1) (the paper's; its table is PAPER below).

ft    supervised fine-tuning on the characters of a few works
dc    DeepCluster on the faces of all training works, without labels
ft+dc DeepCluster that starts from ft

Each layer's features of the faces of an unseen work are reduced to 32 dimensions by UMAP and grouped by
HDBSCAN (min_cluster_size 10, min_samples 1), work by work. Characters with less than 10 faces are one class, "other".

Chosen, as the paper does not say: Adam (its lr is 1e-4), batch size 256, weights at random, ft's epoch by its accuracy
on validation faces and the last epoch of the others (nothing without labels can choose one), crops of 80 % of the
area or more and mirror images, maps averaged over 2 x 2 places, noise as a group of its own. Works are drawn, since
the paper does not list its own.
"""

from dataclasses import replace

from mvray import (
    LAST,
    Choice,
    Column,
    Data,
    Generate,
    Groups,
    Integers,
    Job,
    Measure,
    Optim,
    Pictures,
    Row,
    Scale,
    Search,
    Table,
    Train,
)
from mvray.data.readers import Manga109Faces
from mvray.generators import features
from mvray.methods import deepcluster
from mvray.metrics import Clusters, Hdbscan, Umap

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2")
PAPER = {
    "dc": (0.168, 0.255, 0.330, 0.338, 0.382, 0.418, 0.400),
    "ft": (0.251, 0.238, 0.305, 0.347, 0.311, 0.362, 0.351),
    "ft-dc": (0.278, 0.306, 0.367, 0.405, 0.421, 0.427, 0.375),
}
TITLES = {"dc": "dc: DeepCluster", "ft": "ft: fine-tuned", "ft-dc": "ft+dc: fine-tuned, then DeepCluster"}
MAPPED = "fc1"
"""The layer that is drawn."""


def trained(tiny: bool) -> tuple[Data, dict[str, Train]]:
    """The faces, and the three models."""
    if tiny:
        source = Manga109Faces(unseen=4)
        faces = Data(source, Pictures(64, 64, 1, flip=True, crop_scale=(0.8, 1.0)))
        labelled = replace(faces, source=replace(source, most_works=3))
        dc = deepcluster.Config(network="vgg-small", clusters=100, components=64)
        optim = Optim(name="adam", lr=0.001, batch_size=64, epochs=20)
        scale = Scale(workers=2, loader_workers=1)
    else:
        source = Manga109Faces(unseen=11, train=0.9, validation=0.03, test=0.07)
        faces = Data(source, Pictures(224, 224, 1, flip=True, crop_scale=(0.8, 1.0)))
        labelled = replace(faces, source=replace(source, most_works=20))
        dc = deepcluster.Config(network="vgg16", clusters=3000)
        optim = Optim(name="adam", lr=1e-4, batch_size=256, epochs=200)
        scale = Scale(workers=4, loader_workers=4)
    ft = Train("ft", replace(dc, labels="given"), labelled, optim, scale=scale)
    alone = Train("dc", dc, faces, optim, select=LAST, scale=scale)
    both = Train("ft-dc", dc, faces, optim, start_from=ft, select=LAST, scale=scale)
    return faces, {"dc": alone, "ft": ft, "ft-dc": both}


def job(tiny: bool = False) -> Job:
    """The experiment of section 2: three models, seven layers, grouped work by work; and the pixels themselves."""
    faces, models = trained(tiny)
    unseen = faces.only("unseen")
    scale = models["dc"].scale
    scores: dict[str, Measure] = {}
    for name, model in models.items():
        vectors = Generate(f"features-{name}", features.Config(of=model, layers=LAYERS), unseen, scale)
        metrics = tuple(Clusters(layer, layer, Umap(32), Hdbscan(10, 1), map=layer == MAPPED) for layer in LAYERS)
        scores[name] = Measure(f"groups-{name}", unseen.with_columns(vectors), metrics)
    vectors = Generate("pixels", features.Config(layers=("pixels",)), unseen, scale)
    pixels = Measure(
        "groups-pixels", unseen.with_columns(vectors), (Clusters("pixels", "pixels", Umap(32), Hdbscan(10, 1)),)
    )

    rows = [
        Row(
            TITLES[name],
            score,
            tuple((f"unseen/{layer}_ami", figure) for layer, figure in zip(LAYERS, PAPER[name], strict=True)),
        )
        for name, score in scores.items()
    ]
    table = Table(
        rows=(*rows, Row("the pixels themselves", pixels)),
        columns=(
            *(Column(f"unseen/{layer}_ami", f"AMI, {layer}", 1, 3) for layer in (MAPPED, "fc2", *reversed(LAYERS[:5]))),
            Column("unseen/pixels_ami", "AMI, pixels", 1, 3),
        ),
        note="Adjusted mutual information of the groups with the characters, mean over the works that were not trained "
        "on; noise is a group of its own.",
    )
    groups = Groups("groups", unseen, tuple((TITLES[name], score) for name, score in scores.items()), MAPPED)
    search = Search(
        step="dc",
        space=(
            ("method.clusters", Integers(25, 400, log=True) if tiny else Integers(500, 10000, log=True)),
            ("method.layer", Choice(("", "fc1", "conv5"))),
        ),
        metric="validation/neighbour_accuracy",
        grace=4 if tiny else 10,
    )
    return Job("deepcluster", (*scores.values(), pixels), table, sheets=(groups,), search=search)

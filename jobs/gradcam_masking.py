"""Who drew this page? Grad-CAM masking: control where a CNN looks.

Paper: Takeuchi, Kuroki, Numa (Kobe University), "Grad-CAM masking". Grad-CAM: Selvaraju et al. 2017.
       Random Erasing: Zhong et al. 2017 (arXiv 1708.04896).
Full:  mvray run jobs/gradcam_masking.py --data Manga109 --workers 4
       (60 epochs of 13,942 pages for each of three variants; not run by us: Manga109 must be asked for)
Tiny:  mvray run jobs/gradcam_masking.py --tiny --data samples/comics
       (sample comics, 2 workers; under 5 minutes on two CPU cores)
Score: accuracy on test pages, AlexNet 85.2 %, with Random Erasing 86.2 %, proposed 87.8 % (the paper's).

Phase 1 trains on the original pages until validation stops improving. Phase 2 makes a Grad-CAM map of
every training page. Phase 3 goes on from the phase-1 weights, hiding the pages' attended places with
probability p. All three variants share phase 1 and go on for the same number of epochs in total, with
the same optimiser; they differ in what phase 3 hides: nothing, random rectangles, or the attention.

The paper does not give the optimiser, the learning rate, the threshold of the "red" region or the
fill. Chosen: SGD with momentum 0.9, lr 0.001 (AlexNet from random weights at batch size 4), phase 1
for at most 40 epochs with a patience of 5, the region above half of the highest attention, filled
with the page's mean. The tiny job uses Adam and a small AlexNet on pages of a third of the size.
"""

from dataclasses import replace

from mvray import (
    Choice,
    Column,
    Data,
    Generate,
    Job,
    Measure,
    Optim,
    Pictures,
    Row,
    Scale,
    Search,
    Sheet,
    Table,
    Train,
    Uniform,
    metrics,
)
from mvray.data.readers import Manga109
from mvray.generators import gradcam
from mvray.methods import classifier

PAPER = {"plain": 0.852, "erasing": 0.862, "masked": 0.878}
TITLES = {"plain": "A  AlexNet", "erasing": "B  AlexNet + Random Erasing", "masked": "proposed: Grad-CAM masking"}
SHORT = {"plain": "A looks at", "erasing": "B looks at", "masked": "proposed looks at"}
HIDES = {"plain": "nothing", "erasing": "random", "masked": "attention"}


def job(tiny: bool = False) -> Job:
    """The experiment of section 1: three variants, compared on test pages and on shifted pages."""
    if tiny:
        pages = Data(Manga109(shifted=True), Pictures(height=195, width=138, channels=1))
        network = "alexnet-small"
        optim = Optim(name="adam", lr=0.001, batch_size=16, epochs=14)
        first_optim = replace(optim, epochs=8, patience=2)
        scale = Scale(workers=2, loader_workers=1, checkpoint_steps=20)
    else:
        pages = Data(Manga109(labels="series", train=13942, validation=2020, test=3030), Pictures(585, 414, 1))
        network = "alexnet"
        optim = Optim(lr=0.001, batch_size=4, epochs=60)
        first_optim = replace(optim, epochs=40, patience=5)
        scale = Scale(workers=4, loader_workers=4)

    settings = classifier.Config(network=network, probability=0.5, threshold=0.5, fill="mean")
    first = Train("phase1", settings, pages, first_optim, scale=scale)
    cams = Generate("cams", gradcam.Config(of=first, target="label"), pages.train, scale)

    tested = pages.only("test", "shifted") if tiny else pages.test
    looks: dict[str, Generate] = {}
    scores: dict[str, Measure] = {}
    trained: dict[str, Train] = {}
    for name, hide in HIDES.items():
        trained[name] = Train(
            name,
            classifier.Config(network=network, hide=hide, probability=0.5, threshold=0.5, fill="mean"),
            pages.with_columns(cams) if hide == "attention" else pages,
            optim,
            start_from=first,
            count_start_epochs=True,  # every variant is trained for as many epochs, phase 1 included
            scale=scale,
        )
        looks[name] = Generate(f"look-{name}", gradcam.Config(of=trained[name]), tested, scale)
        scores[name] = Measure(
            f"score-{name}",
            tested.with_columns(looks[name]),
            (metrics.Accuracy(), metrics.AttentionEntropy(), metrics.AttentionInside()),
        )

    table = Table(
        rows=tuple(Row(TITLES[n], scores[n], (("test/accuracy", PAPER[n]),)) for n in HIDES),
        columns=(
            Column("test/accuracy", "accuracy on test pages, %", 100),
            Column("shifted/accuracy", "accuracy on shifted pages, %", 100),
            Column("test/attention_entropy_bits", "attention entropy, bits", 1, 2),
            Column("test/attention_in_body", "attention in bodies, %", 100),
            Column("test/attention_in_face", "attention in faces, %", 100),
        ),
        note="Shifted pages carry each title's drawings on another title's page habits.",
    )
    sheets = tuple(
        Sheet(f"{split} pages", pages.only(split), tuple((SHORT[n], looks[n]) for n in HIDES), trained["masked"])
        for split in tested.splits
    )
    search = Search(
        step="masked",
        space=(
            ("method.probability", Uniform(0.1, 0.9)),
            ("method.threshold", Uniform(0.2, 0.8)),
            ("method.fill", Choice(("mean", "constant", "noise", "blur"))),
        ),
        metric="validation/accuracy",
        grace=2 if tiny else 6,
    )
    return Job("gradcam_masking", tuple(scores.values()), table, seeds=(0,), sheets=sheets, search=search)

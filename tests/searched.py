"""A job whose search takes seconds: a step that starts from another one, on pictures in a folder per class."""

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.experiment.inputs import Pictures
from mvray.experiment.search_space import Choice, LogUniform, Search
from mvray.experiment.steps import Data, Optim, Scale, Train
from mvray.methods import classifier


def job(tiny: bool = False) -> Job:
    data = Data(Folder(), Pictures(32, 32, channels=1))
    scale = Scale(workers=2, loader_workers=0, cpus_per_worker=0.5)
    method = classifier.Config(network="alexnet-small", dropout=0.0)
    first = Train("first", method, data, Optim(epochs=1, batch_size=8), scale=scale)
    optim = Optim(name="adam", epochs=6, batch_size=8)
    second = Train("second", method, data, optim, start_from=first, scale=scale)
    search = Search(
        step="second",
        space=(("optim.lr", LogUniform(1e-5, 1e-1)), ("method.label_smoothing", Choice((0.0, 0.1, 0.2)))),
        metric="validation/loss",
        maximise=False,
        trials=6,
        grace=1,
        reduction=2,
    )
    return Job("searched", (second,), search=search)

"""Detectron2's instance segmentation (Wu et al. 2019), the segmenter of Object-ABN: as its DefaultPredictor, faster.

Detectron2 is not on the package registry; infra/README.md says how it is installed. It finds the same
as its DefaultPredictor does frame by frame, and is faster because several frames are worked on at the
same time, frozen batch norm becomes part of the convolutions and, on CPUs, RoIAlign is our own
(nn/roi_align.py), which works on memory laid out channels last.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mvray.errors import DataError, SettingError
from mvray.experiment import FILE, Frame, Instances, Read, Segmenter, SegmenterConfig
from mvray.nn import Method, in_passes, local, roi_align

if TYPE_CHECKING:
    from detectron2.config import CfgNode

INSTALL = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"


@dataclass(frozen=True)
class Config(SegmenterConfig):
    """``config`` is the name of a configuration in Detectron2's model zoo.

    ``config_file``, a YAML file, is used instead where it is given; what its _BASE_ names does not count
    for the step's id. ``weights`` is a checkpoint for it (.pth, or .pkl, which Detectron2 unpickles: only
    from people that you trust); without it, the model zoo's for ``config`` is downloaded, or what the
    ``config_file`` names. ``options`` are pairs of a name and a value as Detectron2's command lines take
    them: ("INPUT.MIN_SIZE_TEST", "400").
    """

    kind: ClassVar[str] = "detectron2"
    config: str = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    config_file: str = field(default="", metadata=FILE)
    weights: str = field(default="", metadata=FILE)
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.options) % 2:
            raise SettingError(
                f"segmenter.options has {len(self.options)} entries; expected names and values by turns, "
                "such as INPUT.MIN_SIZE_TEST,400."
            )

    def check(self) -> None:
        """Raises SettingError where Detectron2 is not installed, or its model zoo has no such configuration."""
        spec = util.find_spec("detectron2")
        if spec is None or not spec.submodule_search_locations:
            raise SettingError(
                "The segmenter detectron2 needs Detectron2, which is not installed here. To have it for the torch of "
                f"this environment, with a C++ compiler and, for GPUs, the CUDA toolkit that torch was built for: "
                f"{INSTALL} (more in infra/README.md). Without it, set generator.segmenter to mask_rcnn "
                "(torchvision's) or files."
            )
        zoo = Path(spec.submodule_search_locations[0]) / "model_zoo/configs"
        if not self.config_file and not (zoo / self.config).is_file():
            names = [path.relative_to(zoo).as_posix() for path in zoo.glob("*/*.yaml")]
            close = difflib.get_close_matches(self.config, names, n=1)
            raise SettingError(
                f"Detectron2's model zoo has no {self.config!r}"
                f"{f' (did you mean {close[0]!r}?)' if close else ''}; expected a name such as {Config.config!r}, or "
                "set segmenter.config_file to a YAML file."
            )

    def build(self, method: Method | None, read: Read) -> Segmenter:
        self.check()
        return Detectron2Segmenter(_configuration(self))


def _here(place: str) -> str:
    """Detectron2 knows no s3://."""
    return str(local(place)) if place.startswith("s3://") else place


def _configuration(config: Config) -> CfgNode:
    """Detectron2's own settings. Raises SettingError for what it does not take."""
    try:
        from detectron2 import model_zoo
        from detectron2.config import get_cfg
    except ImportError as error:
        raise SettingError(
            f"Detectron2 is installed but cannot be imported ({error}). Build it again with the torch that is "
            f"installed now: {INSTALL} (more in infra/README.md)."
        ) from error
    cfg = get_cfg()
    try:
        cfg.merge_from_file(_here(config.config_file) or model_zoo.get_config_file(config.config))
        if not config.config_file and not config.weights:
            cfg.MODEL.WEIGHTS = model_zoo.get_checkpoint_url(config.config)
        cfg.merge_from_list(list(config.options))
    except (KeyError, AssertionError, ValueError, RuntimeError, OSError) as error:
        raise SettingError(
            f"Detectron2 does not take the settings of the segmenter: {error}. Look at segmenter.config, "
            "config_file and options."
        ) from error
    if config.weights:
        cfg.MODEL.WEIGHTS = _here(config.weights)
    if not cfg.MODEL.MASK_ON or not cfg.MODEL.WEIGHTS:
        what = "no weights" if cfg.MODEL.MASK_ON else "no masks (MODEL.MASK_ON is False)"
        raise SettingError(f"The Detectron2 configuration has {what}; expected a Mask R-CNN with weights.")
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


class Detectron2Segmenter(Segmenter):
    """A model that Detectron2 builds from ``cfg``, and its weights. Raises DataError for weights that do not fit.

    ``most`` is how many frames go through the model together, None its own choice (nn/lanes.py).
    """

    def __init__(self, cfg: CfgNode, most: int | None = None) -> None:
        from detectron2.data import MetadataCatalog, transforms
        from detectron2.modeling import build_model

        self._most = most
        self._device = torch.device(cfg.MODEL.DEVICE)
        self._blue_first = cfg.INPUT.FORMAT == "BGR"
        shortest = [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST]
        self._resize = transforms.ResizeShortestEdge(shortest, cfg.INPUT.MAX_SIZE_TEST)
        self._model: Any = build_model(cfg).eval()
        _load(self._model, cfg.MODEL.WEIGHTS)
        fold_batch_norm(self._model)
        if self._device.type == "cpu":
            use_our_roi_align(self._model)
        self._model.to(memory_format=torch.channels_last)
        self._multiple = max(1, self._model.backbone.size_divisibility)
        names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", None) if cfg.DATASETS.TEST else None
        self.classes = tuple(names or map(str, range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)))

    def __call__(self, frames: Sequence[Frame]) -> list[Instances]:
        with ThreadPoolExecutor(min(len(frames), torch.get_num_threads()) or 1) as pool:
            inputs = list(pool.map(self._input, frames))
        return in_passes(self._segment, inputs, [self._padded_shape(one) for one in inputs], self._device, self._most)

    def _segment(self, inputs: list[dict[str, Any]]) -> list[Instances]:
        return [_instances(output["instances"]) for output in self._model(inputs)]

    def _input(self, frame: Frame) -> dict[str, Any]:
        """What DefaultPredictor gives to the model, but as uint8: it becomes float on the device."""
        height, width = frame.pixels.shape[:2]
        resized_HW3 = self._resize.get_transform(frame.pixels).apply_image(frame.pixels)
        image_3HW = torch.tensor(resized_HW3).permute(2, 0, 1)
        return {"image": image_3HW.flip(0) if self._blue_first else image_3HW, "height": height, "width": width}

    def _padded_shape(self, inputs: dict[str, Any]) -> tuple[int, ...]:
        """Height and width of the image as the network sees it."""
        return tuple(-(-side // self._multiple) * self._multiple for side in inputs["image"].shape[1:])


def _instances(output: Any) -> Instances:
    return Instances(output.pred_masks, output.pred_classes, output.scores, output.pred_boxes.tensor)


def _load(model: torch.nn.Module, place: str) -> None:
    """Weights from a file, a URL or the model zoo. Raises DataError where they cannot be read or do not fit."""
    from detectron2.checkpoint import DetectionCheckpointer

    class Strict(DetectionCheckpointer):  # type: ignore[misc]
        """Detectron2's own only logs what does not fit, and leaves random weights there."""

        def _load_model(self, checkpoint: Any) -> Any:
            incompatible = super()._load_model(checkpoint)
            missing = [*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)]
            if missing:
                raise DataError(
                    f"{place} does not hold weights of this Detectron2 configuration: {len(missing)} entries are "
                    f"missing or of another shape, such as {', '.join(missing[:3])}. Name the configuration that "
                    "the file was made with."
                )
            return incompatible

    try:
        Strict(model).load(place)
    except DataError:
        raise
    except Exception as error:  # a download, a pickle, a zip file: they fail in many ways
        raise DataError(
            f"Detectron2 cannot load weights from {place} ({type(error).__name__}: {error}); expected a checkpoint "
            "for this configuration. Set segmenter.weights to the path of one."
        ) from error


def fold_batch_norm(model: torch.nn.Module) -> None:
    """Make the batch norm after each of Detectron2's convolutions part of it, in eval mode the same function.

    In place; a * (conv(x) - mean) / sqrt(var + eps) + b is a convolution with other weights and a bias.
    """
    from detectron2.layers import Conv2d, FrozenBatchNorm2d

    for layer in model.modules():
        norm = getattr(layer, "norm", None)
        if not isinstance(layer, Conv2d) or not isinstance(norm, FrozenBatchNorm2d | torch.nn.BatchNorm2d):
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        shift = norm.bias.double() - norm.running_mean.double() * factor
        if layer.bias is not None:
            shift += layer.bias.double() * factor
        layer.weight = torch.nn.Parameter((layer.weight.double() * factor[:, None, None, None]).float())
        layer.bias, layer.norm = torch.nn.Parameter(shift.float()), None


def use_our_roi_align(model: torch.nn.Module) -> None:
    """Let Detectron2's RoIAlign layers, which are torchvision's, be those of nn/roi_align.py. In place."""
    from detectron2.layers import ROIAlign

    for layer in model.modules():
        if isinstance(layer, ROIAlign) and len(set(layer.output_size)) == 1:
            layer.forward = partial(
                roi_align,
                bins=layer.output_size[0],
                scale=layer.spatial_scale,
                samples=layer.sampling_ratio,
                aligned=layer.aligned,
            )

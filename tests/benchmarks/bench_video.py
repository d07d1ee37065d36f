"""Training clips per second: our reader against PyTorch's own pipeline for videos, pytorchvideo.

Same files, same number of workers (threads here, DataLoader processes there), same transform: a random
stretch of 64 frames, 16 of them, shorter side 256..320, a random 224 x 224 of it, mirrored or not. Rounds
alternate, the median counts, and workers are started before. Videos are made here as UCF101 has them,
320 x 240, 25 frames a second, 180 frames:

  xvid gop 12      MPEG-4 in AVI, a keyframe every 12 frames
  xvid gop 250     the same, one keyframe: everything before the clip must be decoded
  xvid b-frames    gop 250, with B-frames
  h264             H.264 in MP4, gop 250, B-frames

torchvision 0.29 has no video reader any more; its place is TorchCodec, compared apart (RESULTS.md).
pytorchvideo 0.1.5 imports a module that torchvision renamed; it gets it under its old name. Its workers
can hang for good in FFmpeg's threads, of which it starts some for each frame: that is told, and the round
is repeated.
Run: python tests/benchmarks/bench_video.py [--videos 24] [--rounds 5]
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw, ImageFilter

from mvray.data import sampler
from mvray.data.clips import ClipDataset
from mvray.data.loader import loader
from mvray.data.readers.videos import Videos
from mvray.experiment.inputs import Clips

sys.modules["torchvision.transforms.functional_tensor"] = importlib.import_module(
    "torchvision.transforms._functional_tensor"
)
from pytorchvideo.data import labeled_video_dataset, make_clip_sampler  # noqa: E402
from pytorchvideo.data.encoded_video import EncodedVideo  # noqa: E402
from pytorchvideo.transforms import ApplyTransformToKey, RandomShortSideScale, UniformTemporalSubsample  # noqa: E402

FRAMES, WIDTH, HEIGHT, FRAMES_PER_S = 180, 320, 240, 25
BATCH = 8
HUNG_AFTER_S = 30
CASES: dict[str, tuple[str, str, dict[str, str | int]]] = {
    "xvid gop 12": ("avi", "mpeg4", {"gop": 12}),
    "xvid gop 250": ("avi", "mpeg4", {"gop": 250}),
    "xvid b-frames": ("avi", "mpeg4", {"gop": 250, "bf": "2", "b_strategy": "0"}),
    "h264": ("mp4", "libx264", {"gop": 250, "bf": "3"}),
}
Epoch = Callable[[], Iterable[torch.Tensor]]


def content(seed: int) -> Iterator[np.ndarray]:
    """A camera that wanders over a texture, figures that move, and noise."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 255, (HEIGHT // 4 + 40, WIDTH // 4 + 40, 3), dtype=np.uint8)
    ground = Image.fromarray(coarse).resize((WIDTH + 160, HEIGHT + 160), Image.Resampling.BICUBIC)
    ground = ground.filter(ImageFilter.GaussianBlur(2))
    noise = [draw.normal(0, 4, (HEIGHT, WIDTH, 3)) for _ in range(3)]
    for i in range(FRAMES):
        x, y = int(80 + 70 * np.sin(i / 23 + seed)), int(80 + 60 * np.cos(i / 31))
        image = ground.crop((x, y, x + WIDTH, y + HEIGHT))
        pen = ImageDraw.Draw(image)
        for k in range(5):
            cx, cy = WIDTH * (0.5 + 0.4 * np.sin(i / 17 + k)), HEIGHT * (0.5 + 0.4 * np.cos(i / (11 + k) + 2 * k))
            pen.ellipse((cx - 20, cy - 30, cx + 20, cy + 30), (50 * k, 200 - 30 * k, 90 + 20 * k), "black", width=3)
        yield np.clip(np.asarray(image) + noise[i % 3], 0, 255).astype(np.uint8)


def make(root: Path, videos: int) -> None:
    """ROOT/CASE/CLASS/NAME for each case; two classes."""
    for number in range(videos):
        frames = list(content(number))
        for case, (suffix, codec, settings) in CASES.items():
            path = root / case / f"class{number % 2}" / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            options = {name: str(value) for name, value in settings.items() if name != "gop"}
            with av.open(str(path), "w") as out:
                stream = out.add_stream(codec, rate=FRAMES_PER_S, options={"threads": "1", **options})
                stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
                stream.gop_size, stream.bit_rate = int(settings["gop"]), 700_000
                if codec == "mpeg4":
                    stream.codec_context.codec_tag = "XVID"
                for frame in frames:
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
                out.mux(stream.encode(None))


def ours(root: Path, workers: int) -> Epoch:
    source = Videos(root=str(root), train=1, validation=0, test=0)
    rows = source.index().rows
    dataset = ClipDataset(source, rows, Clips(), train=True)
    order = list(sampler.order(len(rows), BATCH))
    return lambda: (batch["clip"] for batch in loader(dataset, order, workers=workers))


def theirs(root: Path, workers: int) -> Epoch:
    steps = torchvision.transforms.Compose(
        [
            UniformTemporalSubsample(16),
            RandomShortSideScale(256, 320),
            torchvision.transforms.RandomCrop(224),
            torchvision.transforms.RandomHorizontalFlip(),
        ]
    )

    def only_clip(sample: dict[str, torch.Tensor]) -> torch.Tensor:
        return ApplyTransformToKey("video", steps)(sample)["video"].to(torch.uint8)

    dataset = labeled_video_dataset(
        str(root), make_clip_sampler("random", Fraction(64, FRAMES_PER_S)), transform=only_clip, decode_audio=False
    )
    batches = torch.utils.data.DataLoader(
        dataset, BATCH, num_workers=workers, persistent_workers=True, timeout=HUNG_AFTER_S
    )
    return lambda: batches


def clips_per_s(epoch: Epoch, videos: int) -> float:
    begun, clips = time.perf_counter(), 0
    for batch in epoch():
        assert batch.shape[1:] == (3, 16, 224, 224)
        assert batch.dtype == torch.uint8
        clips += len(batch)
    assert clips == videos
    return clips / (time.perf_counter() - begun)


def check_same(root: Path) -> None:
    """Both show the same frames."""
    source = Videos(root=str(root))
    location = source.index().rows["location"][0].as_py()
    theirs = EncodedVideo.from_path(root / location, decode_audio=False, decoder="pyav")
    with av.open(str(root / location)) as given:
        first_pts = next(given.decode(video=0)).pts
        start_s = (first_pts + 40 * Fraction(1, FRAMES_PER_S) / given.streams.video[0].time_base) * Fraction(
            given.streams.video[0].time_base
        )
    clip_CTHW = theirs.get_clip(start_s, start_s + Fraction(64, FRAMES_PER_S))["video"]
    assert clip_CTHW.shape[1] == 64
    with source.open(location) as video:
        own_THWC = video.frames(range(40, 104))
    difference = np.abs(own_THWC - clip_CTHW.permute(1, 2, 3, 0).numpy()).mean((1, 2, 3))
    assert difference.max() < 4, f"the two do not show the same frames: {difference}"


def compare(name: str, root: Path, workers: int, videos: int, rounds: int) -> None:
    mine, peer = ours(root, workers), theirs(root, workers)
    clips_per_s(mine, videos)
    hung, is_warm = 0, False
    measured: list[tuple[float, float]] = []
    while len(measured) < rounds and hung < 3:
        try:
            if not is_warm:  # the first round starts workers and fills caches
                clips_per_s(peer, videos)
            is_warm = True
            measured.append((clips_per_s(mine, videos), clips_per_s(peer, videos)))
        except RuntimeError as error:  # what DataLoader raises
            if "timed out" not in str(error):
                raise
            hung, is_warm, peer = hung + 1, False, theirs(root, workers)
    said = f"  (a worker of pytorchvideo's hung {hung} times)" if hung else ""
    if measured:
        own, other = (statistics.median(rates) for rates in zip(*measured, strict=True))
        print(f"{name:16} {workers:7} {own:9.1f} {other:14.1f} {own / other:8.2f}{said}", flush=True)
    else:
        print(f"{name:16} {workers:7} {'':34}{said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, given.videos)
        print(f"clips/s, batches of {BATCH}, {given.videos} videos, median of {given.rounds} rounds")
        print(f"{'case':16} {'workers':>7} {'mvray':>9} {'pytorchvideo':>14} {'ratio':>8}")
        for case in CASES:
            check_same(root / case)
            for workers in (1, 2):
                compare(case, root / case, workers, given.videos, given.rounds)


if __name__ == "__main__":
    main()

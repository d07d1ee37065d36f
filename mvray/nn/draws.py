"""Random numbers that belong to a sample: the same on any device and rank, in any batch, after any restart.

Every sample of a batch carries a key (``batch["draw"]``, int64). A number is a hash of (key, stream,
counter): splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
written with torch's int64 arithmetic, which wraps around. ``stream`` tells the uses of one key apart;
each use has a stream of its own.

Shapes: B samples, then whatever shape is asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def _to_signed(value: int) -> int:
    """The int64 that has the same 64 bits."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _to_signed(0x9E3779B97F4A7C15)
_FACTORS = (_to_signed(0xBF58476D1CE4E5B9), _to_signed(0x94D049BB133111EB))


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own shift copies the sign bit."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift_right(words, 30)).mul_(_FACTORS[0])
    words = (words ^ _shift_right(words, 27)).mul_(_FACTORS[1])
    return words ^ _shift_right(words, 31)


def _words(draw_B: Tensor, stream: int, count: int) -> Tensor:
    """``count`` random int64 per sample, B x count."""
    assert draw_B.dtype == torch.int64, f"a draw is an int64 key, not {draw_B.dtype}"
    start_B = _mix(_mix(draw_B + _GOLDEN) + _to_signed(stream * _GOLDEN))
    counter = torch.arange(1, count + 1, device=draw_B.device)
    return _mix(start_B[:, None] + counter.mul_(_GOLDEN))


def uniform(draw_B: Tensor, stream: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Independent uniform numbers in [0, 1), B x ``shape`` float32, multiples of 2**-24.

    Equal bit for bit on CPU and GPU.
    """
    words = _words(draw_B, stream, math.prod(shape))
    return (_shift_right(words, 40).to(torch.float32) * 2.0**-24).reshape(-1, *shape)


def noise(draw_B: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Independent uniform bytes, B x ``shape`` uint8, eight of them from each word."""
    count = math.prod(shape)
    octets = _words(draw_B, stream, math.ceil(count / 8)).view(torch.uint8)
    return octets[:, :count].reshape(-1, *shape)


def normal(draw_B: Tensor, stream: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Independent standard normal numbers, B x ``shape`` float32 (Box and Muller 1958).

    Equal on CPU and GPU up to the rounding of their logarithm and cosine.
    """
    radius, turn = uniform(draw_B, stream, (2, *shape)).unbind(1)
    return torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * math.pi * turn)

"""The operations of augmentation, each on a whole batch at once.

Each operation first *draws*, on the host and from counters (`vitfp8.data.draws`), what it will do to each image, then *applies*
it to the batch on the device. Nothing here waits for the device, and nothing couples the images of a batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vitfp8.data.draws import ERASING_TRIES, Draw, fixed_noise

#: How many places there are in the noise pool to take an image's noise from, and how many numbers lie between two of them.
NOISE_PLACES, NOISE_ROW = 2**12, 64

#: Luma weights of red, green and blue (ITU-R BT.601), as torchvision has them.
LUMA = (0.2989, 0.587, 0.114)

# A value drawn for each image, [B], float32, by name.
Drawn = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every operation may know besides the images.

    Attributes:
        side: height and width of the images that come out, in pixels.
        channels: 1 or 3.
        mean: of each channel, in [0, 1].
        std: of each channel, in the same unit.
        flip_keeps_class: whether images may be flipped.
        device: where the images are.
    """

    side: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip_keeps_class: bool
    device: torch.device


class Operation(Protocol):
    """One step of an augmentation level."""

    def draw(self, uniform: np.ndarray, setting: Setting) -> Drawn:
        """Turn uniform numbers into this operation's parameters.

        Args:
            uniform: float64 [DRAWS, B], rows as in `vitfp8.data.draws.Draw`.
        """

    def apply(self, images: Tensor, drawn: Mapping[str, Tensor], setting: Setting) -> Tensor:
        """Transform a batch; it may be overwritten.

        Args:
            images: [B, C, H, W].
            drawn: float32 [B] each, on the images' device.
        """


@functools.cache
def resampling_weights(source: int, target: int) -> Tensor:
    """The matrix that resizes a line of pixels bilinearly, anti-aliased when it shrinks (Pillow's ``BILINEAR``).

    Args:
        source: pixels that there are.
        target: pixels that are wanted.

    Returns:
        float32 [target, source] on the CPU; multiples of 1/256 whose rows sum to 1.
    """
    scale = source / target
    support = max(scale, 1.0)
    centers = (np.arange(target)[:, None] + 0.5) * scale
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(source)[None, :] + 0.5 - centers) / support)
    weights = weights / weights.sum(axis=1, keepdims=True) * 256
    whole = np.rint(weights)
    whole[np.arange(target), weights.argmax(axis=1)] += 256 - whole.sum(axis=1)
    return torch.from_numpy((whole / 256).astype(np.float32))


@functools.lru_cache(maxsize=16)
def _framed_weights(source: int, target: int, padding: int, device: torch.device) -> Tensor:
    """`resampling_weights` with ``padding`` rows of zeros (black) on both sides, [target + 2·padding, source]."""
    weights = torch.nn.functional.pad(resampling_weights(source, target), (0, 0, padding, padding))
    return weights.to(device)


@dataclass(frozen=True, kw_only=True)
class Resample:
    """Resize, crop and flip in one go: bytes [B, C, H, W] become levels 0…255 in float32 [B, C, S, S].

    The crop is torchvision's ``RandomCrop(S, padding)``: the resized image in a black frame, and a window of its own size
    somewhere in it. Crop and flip only choose and order rows and columns, so they are done by choosing and ordering those of the
    resizing matrices.

    Attributes:
        crop_padding: width of the frame as a fraction of the side, rounded down; 0 crops nothing.
        flip: probability of a horizontal flip, where a flip keeps the class.
    """

    crop_padding: float = 0.0
    flip: float = 0.0

    def padding(self, side: int) -> int:
        """Width of the black frame in pixels."""
        return int(side * self.crop_padding)

    def draw(self, uniform: np.ndarray, setting: Setting) -> Drawn:
        """Window positions (0…2·padding) and whether to flip (0 or 1)."""
        places = 2 * self.padding(setting.side) + 1
        flip = self.flip if setting.flip_keeps_class else 0.0
        return {
            "crop_top": np.floor(uniform[Draw.CROP_TOP] * places),
            "crop_left": np.floor(uniform[Draw.CROP_LEFT] * places),
            "flipped": uniform[Draw.FLIP] < flip,
        }

    def apply(self, images: Tensor, drawn: Mapping[str, Tensor], setting: Setting) -> Tensor:
        """Resample with the drawn windows."""
        side, padding = setting.side, self.padding(setting.side)
        pixel = torch.arange(side, device=images.device)
        flipped = drawn["flipped"].long()[:, None]
        rows = drawn["crop_top"].long()[:, None] + pixel
        columns = drawn["crop_left"].long()[:, None] + pixel + flipped * (side - 1 - 2 * pixel)
        return resample(images, rows, columns, padding=padding)


def resample(images: Tensor, rows: Tensor, columns: Tensor, *, padding: int) -> Tensor:
    """Resize to S×S, put a black frame around it and take S rows and columns of that.

    Args:
        images: uint8 [B, C, H, W].
        rows: int64 [B, S], the rows to take, 0…S+2·padding−1.
        columns: int64 [B, S], likewise.
        padding: width of the frame in pixels.

    Returns:
        float32 [B, C, S, S], levels 0…255.
    """
    batch, channels, height, width = images.shape
    side = rows.shape[1]
    if (height, width) == (side, side):
        framed = torch.nn.functional.pad(images, (padding,) * 4).flatten(2)
        place = (rows[:, :, None] * (side + 2 * padding) + columns[:, None, :]).view(batch, 1, side * side)
        return framed.gather(2, place.expand(-1, channels, -1)).view(batch, channels, side, side).float()
    across = _framed_weights(width, side, padding, images.device)[columns].transpose(1, 2)
    down = _framed_weights(height, side, padding, images.device)[rows]
    lines = torch.bmm(images.float().view(batch, channels * height, width), across).round_()
    lines = lines.view(batch * channels, height, side)
    down = down[:, None].expand(-1, channels, -1, -1).reshape(batch * channels, side, height)
    return torch.bmm(down, lines).view(batch, channels, side, side)


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue; the last two only of colour images.

    Attributes:
        brightness: factor drawn from 1 ± this.
        contrast: factor drawn from 1 ± this.
        saturation: factor drawn from 1 ± this.
        hue: shift drawn from ± this, in turns of the colour circle; at most 1/6, as `adjust_hue` has it.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def draw(self, uniform: np.ndarray, setting: Setting) -> Drawn:
        """Factors and shift for each image."""
        return {
            "brightness": 1 + (2 * uniform[Draw.BRIGHTNESS] - 1) * self.brightness,
            "contrast": 1 + (2 * uniform[Draw.CONTRAST] - 1) * self.contrast,
            "saturation": 1 + (2 * uniform[Draw.SATURATION] - 1) * self.saturation,
            "hue": (2 * uniform[Draw.HUE] - 1) * self.hue,
        }

    def apply(self, images: Tensor, drawn: Mapping[str, Tensor], setting: Setting) -> Tensor:
        """Levels 0…255 to levels 0…255."""
        images = adjust_brightness(images, drawn["brightness"])
        images = adjust_contrast(images, drawn["contrast"])
        if images.shape[1] == 1:
            return images
        images = adjust_saturation(images, drawn["saturation"])
        return adjust_hue(images, drawn["hue"])


def grey(images: Tensor) -> Tensor:
    """Luma of levels [B, C, H, W], as [B, H, W]; a grey image's own levels."""
    if images.shape[1] == 1:
        return images[:, 0]
    luma = images[:, 0] * LUMA[0]
    luma.add_(images[:, 1] * LUMA[1])
    return luma.add_(images[:, 2] * LUMA[2])


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply levels [B, C, H, W] by a factor [B] and clip; in place."""
    return images.mul_(factor[:, None, None, None]).clamp_(0, 255)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend levels [B, C, H, W] with the image's mean grey by a factor [B] and clip; in place.

    The mean is that of whole grey levels, as Pillow has it: rows are summed exactly in float32, rows' sums in 64-bit integers.
    """
    rows = grey(images).round().sum(dim=-1)
    mean = rows.long().sum(dim=-1).float() / (images.shape[-1] * images.shape[-2])
    images.mul_(factor[:, None, None, None])
    return images.add_((mean * (1 - factor))[:, None, None, None]).clamp_(0, 255)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend levels [B, 3, H, W] with their own grey by a factor [B] and clip; in place."""
    offset = grey(images).mul_((1 - factor)[:, None, None])
    return images.mul_(factor[:, None, None, None]).add_(offset[:, None]).clamp_(0, 255)


@functools.lru_cache(maxsize=4)
def _opposite_hues(device: torch.device) -> Tensor:
    """Hue opposite to red, green and blue in sixths of a turn from red, [1, 3, 1, 1]."""
    return torch.tensor([3.0, -1.0, 1.0], device=device)[None, :, None, None]


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of levels [B, 3, H, W] by a shift [B], at most ±1/6 turn; a new tensor.

    The HSV model without a case distinction. With M, m the largest and smallest of r, g, b and c = M − m, the distance of the hue
    from red is |h| = 1 + (g + b − r − m)/c sixths of a turn, on the side of green if g > b. Back, a channel is M − c·w, where w
    is 1 within a sixth of the hue opposite to the channel's (cyan, magenta, yellow), 0 beyond two sixths and linear between; ||x|
    − 3| − 1, clipped, is that for a difference x of up to seven sixths, so that the sum of hue and shift need not be wrapped.

    Args:
        images: float32 [B, 3, H, W], levels 0…255.
        shift: float32 [B], in turns, −1/6…1/6.
    """
    red, green, blue = images.unbind(1)
    largest = torch.maximum(red, green).maximum(blue)
    smallest = torch.minimum(red, green).minimum(blue)
    chroma = largest - smallest
    distance = green + blue
    distance.sub_(red).sub_(smallest).div_(chroma.clamp(min=1e-6)).add_(1)
    hue = distance.copysign_(green - blue).add_((6 * shift)[:, None, None])
    wave = (hue[:, None] - _opposite_hues(images.device)).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1).mul_(chroma[:, None])
    return torch.sub(largest[:, None], wave, out=wave)


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Rotate about the centre, bilinear, corners black.

    Attributes:
        degrees: angle drawn from ± this, positive is counter-clockwise.
    """

    degrees: float

    def draw(self, uniform: np.ndarray, setting: Setting) -> Drawn:
        """Cosine and sine of each image's angle."""
        angle = np.deg2rad((2 * uniform[Draw.ROTATION] - 1) * self.degrees)
        return {"cosine": np.cos(angle), "sine": np.sin(angle)}

    def apply(self, images: Tensor, drawn: Mapping[str, Tensor], setting: Setting) -> Tensor:
        """A new tensor of the same shape."""
        return rotate(images, drawn["cosine"], drawn["sine"])


def rotate(images: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate square images counter-clockwise about their centre: bilinear, outside is 0.

    Args:
        images: float32 [B, C, S, S].
        cosine: of the angle, float32 [B].
        sine: of the angle, float32 [B].

    Returns:
        a new tensor [B, C, S, S].
    """
    batch, _, side, _ = images.shape
    # Where each pixel comes from, in units of half a side from the centre.
    offset = (torch.arange(side, device=images.device, dtype=torch.float32) * 2 + (1 - side)) / side
    along_x, along_y = offset[None, None, :], offset[None, :, None]
    cosine, sine = cosine[:, None, None], sine[:, None, None]
    grid = torch.empty(batch, side, side, 2, device=images.device)
    torch.sub(along_x * cosine, along_y * sine, out=grid[..., 0])
    torch.add(along_x * sine, along_y * cosine, out=grid[..., 1])
    return torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@functools.lru_cache(maxsize=16)
def _channel_constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor 1/(255·std) and offset mean/std of `Normalize`, [1, C, 1, 1] each."""
    factor = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)
    offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32, device=device)
    return factor[None, :, None, None], offset[None, :, None, None]


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Levels 0…255 to mean 0 and deviation 1 over the training images: (level/255 − mean)/std of each channel."""

    def draw(self, uniform: np.ndarray, setting: Setting) -> Drawn:
        """Nothing is drawn."""
        return {}

    def apply(self, images: Tensor, drawn: Mapping[str, Tensor], setting: Setting) -> Tensor:
        """In place."""
        factor, offset = _channel_constants(setting.mean, setting.std, images.device)
        return images.mul_(factor).sub_(offset)


@functools.lru_cache(maxsize=8)
def _noise_pool(rows: int, device: torch.device) -> Tensor:
    """The pool of normal noise for images of that many rows of numbers, [`NOISE_PLACES` + rows, `NOISE_ROW`]."""
    return torch.from_numpy(fixed_noise((NOISE_PLACES + rows) * NOISE_ROW)).view(-1, NOISE_ROW).to(device)


def erasing_noise(place: Tensor, channels: int, side: int) -> Tensor:
    """Normal noise for each image, from its place in the pool on.

    Args:
        place: [B], 0…`NOISE_PLACES`−1, on the device.

    Returns:
        a new tensor, float32 [B, C, S, S].
    """
    values = channels * side * side
    rows = -(-values // NOISE_ROW)
    lines = place.long()[:, None] + torch.arange(rows, device=place.device)
    noise = _noise_pool(rows, place.device).index_select(0, lines.flatten()).view(len(place), -1)
    return noise[:, :values].view(-1, channels, side, side)


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """Replace a rectangle by normal noise, one number a pixel and channel (Zhong et al. 2017), on normalised images.

    As torchvision has it: area and aspect ratio (logarithmically uniform) are drawn up to ten times, until the rectangle is
    smaller than the image; if none is, nothing is erased.

    Attributes:
        probability: that an image is erased in.
        scale: smallest and largest area as a fraction of the image's.
        ratio: smallest and largest height over width.
    """

    probability: float
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def draw(self, uniform: np.ndarray, setting: Setting) -> Drawn:
        """Rectangles in pixels and the noise's place; ``bottom`` and ``right`` are exclusive, empty where nothing is erased."""
        side = setting.side
        area = uniform[Draw.ERASING_AREA : Draw.ERASING_AREA + ERASING_TRIES]
        area = (self.scale[0] + area * (self.scale[1] - self.scale[0])) * side * side
        ratio = uniform[Draw.ERASING_RATIO : Draw.ERASING_RATIO + ERASING_TRIES]
        ratio = np.exp(math.log(self.ratio[0]) + ratio * math.log(self.ratio[1] / self.ratio[0]))
        heights, widths = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (heights < side) & (widths < side)
        first = fits.argmax(axis=0)[None, :]
        erased = fits.any(axis=0) & (uniform[Draw.ERASING] < self.probability)
        height = np.where(erased, np.take_along_axis(heights, first, axis=0)[0], 0.0)
        width = np.where(erased, np.take_along_axis(widths, first, axis=0)[0], 0.0)
        top = np.floor(uniform[Draw.ERASING_TOP] * (side - height + 1))
        left = np.floor(uniform[Draw.ERASING_LEFT] * (side - width + 1))
        place = np.floor(uniform[Draw.ERASING_NOISE] * NOISE_PLACES)
        return {"top": top, "bottom": top + height, "left": left, "right": left + width, "noise_place": place}

    def apply(self, images: Tensor, drawn: Mapping[str, Tensor], setting: Setting) -> Tensor:
        """In place."""
        _, channels, side, _ = images.shape
        pixel = torch.arange(side, device=images.device)
        rows = (pixel >= drawn["top"][:, None]) & (pixel < drawn["bottom"][:, None])
        columns = (pixel >= drawn["left"][:, None]) & (pixel < drawn["right"][:, None])
        inside = rows.float()[:, None, :, None] * columns.float()[:, None, None, :]
        noise = erasing_noise(drawn["noise_place"], channels, side)
        # Multiplying by 0 and 1 is exact, and many times faster than torch.where on a CPU.
        return images.mul_(1 - inside).add_(noise.mul_(inside))

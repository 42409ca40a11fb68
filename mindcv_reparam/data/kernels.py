"""Loops over pixels, compiled by Numba: bit for bit what Pillow computes, in a fraction of the time, without the GIL.

Images are uint8 (H, W, 3), C-contiguous. The arithmetic follows Pillow's C sources operation by operation: resampling
in 22-bit fixed point, affine transforms in double, blending in single precision, luminance in 16-bit fixed point.

Importing this takes half a second, and a kernel's first call compiles it, once per machine: the result is kept beside
this file or in the user's cache folder. Only what augments training images imports it.
"""

import math
from collections.abc import Callable

import numpy as np
from numba import float32, float64, int32, int64, njit, uint8

BILINEAR, BICUBIC = 0, 1
_FRACTION_BITS = 22
_HALF = 1 << (_FRACTION_BITS - 1)
_LANES = 64  # pixels that are moved side by side
_BLOCK = 32  # lines that are transposed together, so that the filter runs over them side by side


def kernel(function: Callable) -> Callable:
    """A function compiled when it is first called, once per machine; it runs beside other threads."""
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep the result in: every process compiles
        return njit(nogil=True, error_model="numpy")(function)


# ---------------------------------------------------------------------------------------------------------------------
# Antialiased resizing: Image.resize


def resize_crop(
    pixels: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int], flips: tuple[bool, bool], kind: int
) -> np.ndarray:
    """The crop (top, left, height, width) resized to ``size``, then flipped horizontally and vertically.

    ``kind`` is BILINEAR or BICUBIC. Where the crop reaches out of the image, there is black. No kernel itself:
    compiling the passes apart takes half the time.
    """
    top, left, height, width = box
    lines = pixels.reshape(pixels.shape[0], pixels.shape[1] * 3)
    # Values are rounded between the passes. Pillow 13 goes down first where that saves most of the way across.
    down_first = height > size[0] and height - size[0] > 2 * (width - size[1])
    left, width, across = _within(left, width, pixels.shape[1], _weights(width, size[1], kind, flips[0]))
    top, height, down = _within(top, height, pixels.shape[0], _weights(height, size[0], kind, flips[1]))
    if width == 0 or height == 0:
        return np.zeros((*size, 3), np.uint8)
    if down_first:
        resized = _resize_across(_resize_down(lines, top, left * 3, width * 3, *down), 0, 0, size[0], *across)
    else:
        resized = _resize_down(_resize_across(lines, top, left, height, *across), 0, 0, size[1] * 3, *down)
    return resized.reshape(*size, 3)


def _within(
    first: int, length: int, limit: int, taps: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[int, int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Where the pixels ``first`` … of a crop begin in an image of ``limit``, how many lie in it, and the taps that meet
    them; those that meet black are left out."""
    if first >= 0 and first + length <= limit:
        return first, length, taps
    weights, starts, counts = taps
    begin, end = min(max(first, 0), limit), max(min(first + length, limit), 0)
    dropped = np.minimum(np.maximum(begin - first - starts, 0), counts)
    left_over = np.maximum(np.minimum(starts + counts, end - first) - starts - dropped, 0)
    places = np.minimum(np.arange(weights.shape[1]) + dropped[:, None], weights.shape[1] - 1)
    starts = np.where(left_over > 0, starts + dropped + first - begin, 0)
    return begin, max(end - begin, 0), (np.take_along_axis(weights, places, axis=1), starts, left_over)


@kernel
def _weights(length, out_length, kind, reverse):
    """Fixed-point weights (out_length, taps) of the filter that ``length`` pixels meet, their starts and counts."""
    scale = length / out_length
    stretch = max(scale, 1.0)
    support = (2.0 if kind == BICUBIC else 1.0) * stretch
    weights = np.zeros((out_length, math.ceil(support) * 2 + 1), np.int32)
    starts, counts = np.empty(out_length, np.int64), np.empty(out_length, np.int64)
    real = np.empty(weights.shape[1])
    for out in range(out_length):
        centre = (out + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        count = min(int(centre + support + 0.5), length) - start
        total = 0.0
        for tap in range(count):
            distance = abs((tap + start - centre + 0.5) * (1.0 / stretch))
            real[tap] = _bicubic(distance) if kind == BICUBIC else max(1.0 - distance, 0.0)
            total += real[tap]
        place = out_length - 1 - out if reverse else out
        for tap in range(count):
            weight = real[tap] / total * (1 << _FRACTION_BITS)
            weights[place, tap] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        starts[place], counts[place] = start, count
    return weights, starts, counts


@kernel
def _bicubic(distance):
    """Keys' cubic convolution kernel with a = −0.5."""
    if distance < 1.0:
        return (1.5 * distance - 2.5) * distance * distance + 1.0
    if distance < 2.0:
        return (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5
    return 0.0


@kernel
def _resize_across(lines, top, left, height, weights, starts, counts):
    """Lines ``top`` … of RGB pixels from pixel ``left`` on → uint8 (height, outputs · 3)."""
    end = starts.max() + weights.shape[1]
    width = min(end, lines.shape[1] // 3 - left)
    resized = np.empty((height, len(starts) * 3), np.uint8)
    columns = np.empty((end, 3 * _BLOCK), np.uint8)  # [x, channel · _BLOCK + line]
    sums, filtered = np.empty(3 * _BLOCK, np.int32), np.empty(3 * _BLOCK, np.uint8)
    for first in range(0, height, _BLOCK):
        for row in range(_BLOCK):
            line = lines[top + min(first + row, height - 1)]
            for x in range(width):
                columns[x, row] = line[(left + x) * 3]
                columns[x, _BLOCK + row] = line[(left + x) * 3 + 1]
                columns[x, 2 * _BLOCK + row] = line[(left + x) * 3 + 2]
        for out in range(len(starts)):
            for lane in range(3 * _BLOCK):
                sums[lane] = _HALF
            for tap in range(counts[out]):
                weight, column = weights[out, tap], columns[starts[out] + tap]
                for lane in range(3 * _BLOCK):
                    sums[lane] += weight * int32(column[lane])
            for lane in range(3 * _BLOCK):
                filtered[lane] = _rounded(sums[lane])
            for row in range(min(_BLOCK, height - first)):
                line = resized[first + row]
                for channel in range(3):
                    line[out * 3 + channel] = filtered[channel * _BLOCK + row]
    return resized


@kernel
def _resize_down(lines, top, left, width, weights, starts, counts):
    """Columns ``left`` … of bytes from line ``top`` on → uint8 (outputs, width)."""
    resized = np.empty((len(starts), width), np.uint8)
    sums = np.empty(width, np.int32)
    for out in range(len(starts)):
        for x in range(width):
            sums[x] = _HALF
        for tap in range(counts[out]):
            weight, line = weights[out, tap], lines[top + starts[out] + tap, left : left + width]
            for x in range(width):
                sums[x] += weight * int32(line[x])
        filtered = resized[out]
        for x in range(width):
            filtered[x] = _rounded(sums[x])
    return resized


@kernel
def _rounded(fixed):
    return uint8(min(max(fixed >> _FRACTION_BITS, int32(0)), int32(255)))


# ---------------------------------------------------------------------------------------------------------------------
# Image.transform(size, AFFINE, matrix, BICUBIC)


@kernel
def affine(pixels, matrix, fill):
    """Bicubic: output (x, y) comes from (a·x + b·y + c, d·x + e·y + f); what comes from outside is ``fill``."""
    height, width = pixels.shape[0], pixels.shape[1]
    a, b, c, d, e, f = matrix
    packed, pitch = _pack(pixels), width + 4
    moved = np.empty_like(pixels)
    inside, places = np.zeros(_LANES, np.bool_), np.zeros(_LANES, np.int64)
    right, below = np.zeros(_LANES), np.zeros(_LANES)
    taps = np.zeros((16, _LANES), np.int32)  # [4 · line + column, lane]
    crossings, values = np.zeros((4, _LANES)), np.zeros(_LANES, np.int32)
    # Shears and translations move along one axis: along the other, interpolating is the identity.
    between_columns = a != 1.0 or b != 0.0 or c != 0.0
    between_lines = d != 0.0 or e != 1.0 or f != 0.0
    for y in range(height):
        for start in range(0, width, _LANES):
            for lane in range(_LANES):
                x = start + lane
                source_x = a * (x + 0.5) + b * (y + 0.5) + c
                source_y = d * (x + 0.5) + e * (y + 0.5) + f
                inside[lane] = (source_x >= 0.0) & (source_x < width) & (source_y >= 0.0) & (source_y < height)
                whole_x, whole_y = np.floor(source_x - 0.5), np.floor(source_y - 0.5)
                right[lane], below[lane] = (source_x - 0.5) - whole_x, (source_y - 0.5) - whole_y
                places[lane] = int64((whole_y + 1.0) * pitch + whole_x + 1.0)
            end = min(_LANES, width - start)
            first, last = end, 0  # the outputs that come from inside are neighbours
            for lane in range(end):
                if inside[lane]:
                    first, last = min(first, lane), lane + 1
                else:
                    for channel in range(3):
                        moved[y, start + lane, channel] = fill[channel]
            for line in range(0 if between_lines else 1, 4 if between_lines else 2):
                for column in range(0 if between_columns else 1, 4 if between_columns else 2):
                    tap, source = taps[4 * line + column], packed[line * pitch + column :]
                    for lane in range(first, last):
                        tap[lane] = source[places[lane]]
            for channel in range(3):
                if not between_lines:
                    _interpolate(taps[4], taps[5], taps[6], taps[7], 8 * channel, right, crossings[0])
                elif not between_columns:
                    _interpolate(taps[1], taps[5], taps[9], taps[13], 8 * channel, below, crossings[0])
                else:
                    for line in range(4):
                        p, q, r, s = taps[4 * line], taps[4 * line + 1], taps[4 * line + 2], taps[4 * line + 3]
                        _interpolate(p, q, r, s, 8 * channel, right, crossings[line])
                    for lane in range(_LANES):
                        crossings[0, lane] = _cubic(
                            crossings[0, lane], crossings[1, lane], crossings[2, lane], crossings[3, lane], below[lane]
                        )
                for lane in range(_LANES):
                    values[lane] = int32(min(max(crossings[0, lane], 0.0), 255.0))
                for lane in range(first, last):
                    moved[y, start + lane, channel] = values[lane]
    return moved


@kernel
def _pack(pixels):
    """The image with its edge repeated twice on every side, a pixel's channels in the bytes of an int32, flat."""
    height, width = pixels.shape[0], pixels.shape[1]
    packed = np.empty((height + 4, width + 4), np.int32)
    for y in range(height + 4):
        line = pixels[min(max(y - 2, 0), height - 1)]
        for x in range(width + 4):
            column = min(max(x - 2, 0), width - 1)
            packed[y, x] = int32(line[column, 0]) | int32(line[column, 1]) << 8 | int32(line[column, 2]) << 16
    return packed.reshape(packed.size)


@kernel
def _interpolate(p, q, r, s, shift, fractions, crossing):
    """Fill ``crossing`` with the values between q and r of the channel whose bits start at ``shift``."""
    for lane in range(_LANES):
        crossing[lane] = _cubic(
            float64((p[lane] >> shift) & 255),
            float64((q[lane] >> shift) & 255),
            float64((r[lane] >> shift) & 255),
            float64((s[lane] >> shift) & 255),
            fractions[lane],
        )


@kernel
def _cubic(p, q, r, s, t):
    """The value at ``t`` between q and r."""
    return q + t * ((-p + r) + t * ((2.0 * (p - q) + r - s) + t * (-p + q - r + s)))


# ---------------------------------------------------------------------------------------------------------------------
# Values


@kernel
def look_up(pixels, tables):
    """Each channel's values replaced by their entries in its table, uint8 (3, 256)."""
    replaced = np.empty_like(pixels)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            for channel in range(3):
                replaced[y, x, channel] = tables[channel, pixels[y, x, channel]]
    return replaced


@kernel
def look_up_planes(pixels, tables, planes):
    """Fill ``planes`` (3, H, W) with each channel's entries in its table, (3, 256) of its type."""
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            for channel in range(3):
                planes[channel, y, x] = tables[channel, pixels[y, x, channel]]


@kernel
def histograms(pixels):
    """How often each channel has each value: int64 (3, 256)."""
    counts = np.zeros((3, 256), np.int64)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            for channel in range(3):
                counts[channel, pixels[y, x, channel]] += 1
    return counts


@kernel
def _luminance(red, green, blue):
    """Of ITU-R 601-2, as in convert("L")."""
    return (int32(red) * 19595 + int32(green) * 38470 + int32(blue) * 7471 + 0x8000) >> 16


@kernel
def mean_luminance(pixels):
    total = 0
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            total += _luminance(pixels[y, x, 0], pixels[y, x, 1], pixels[y, x, 2])
    return total / (pixels.shape[0] * pixels.shape[1])


@kernel
def saturate(pixels, factor):
    """ImageEnhance.Color: each pixel's distance from its grey times ``factor``."""
    factor = float32(factor)
    saturated = np.empty_like(pixels)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            grey = _luminance(pixels[y, x, 0], pixels[y, x, 1], pixels[y, x, 2])
            for channel in range(3):
                value = float32(grey) + factor * float32(int32(pixels[y, x, channel]) - grey)
                saturated[y, x, channel] = uint8(min(max(value, float32(0.0)), float32(255.0)))
    return saturated


@kernel
def turn_hue(pixels, shift):
    """Each pixel's hue plus ``shift`` of 256 steps, by way of Pillow's "HSV" of 8 bits."""
    # Red is brightest in the sectors 0 and 5, falls in 1, is least in 2 and 3, rises in 4; green and blue do the same
    # two and four sectors later.
    sectors, parts, wholes = np.empty(256, np.int32), np.empty(256), np.empty(256)
    for value in range(256):
        sectors[value] = int32(math.floor(value * 6.0 / 255.0)) % 6
        parts[value] = float32(value * 6.0 / 255.0 - math.floor(value * 6.0 / 255.0))
        wholes[value] = float32(value / 255.0)
    turned = np.empty_like(pixels)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            red, green, blue = int32(pixels[y, x, 0]), int32(pixels[y, x, 1]), int32(pixels[y, x, 2])
            most, least = max(red, max(green, blue)), min(red, min(green, blue))
            if most == least:
                turned[y, x, 0], turned[y, x, 1], turned[y, x, 2] = uint8(most), uint8(most), uint8(most)
                continue
            hue = (_hue(red, green, blue, most, most - least) + shift) & 255
            sector, part = sectors[hue], parts[hue]
            whole = wholes[int32(float64(float32(most - least) / float32(most)) * 255.0)]
            low = _half_up(most * (1.0 - whole))
            between = _half_up(most * (1.0 - whole * (part if sector & 1 else 1.0 - part)))
            high = uint8(most)
            for channel in range(3):
                place = sector + 6 - 2 * channel
                place -= 6 if place >= 6 else 0
                if place == 0 or place == 5:
                    turned[y, x, channel] = high
                elif place == 2 or place == 3:
                    turned[y, x, channel] = low
                else:
                    turned[y, x, channel] = between
    return turned


@kernel
def _hue(red, green, blue, most, spread):
    from_red, from_green = float32(most - red) / float32(spread), float32(most - green) / float32(spread)
    from_blue = float32(most - blue) / float32(spread)
    if red == most:
        sixth = float32(from_blue - from_green)
    elif green == most:
        sixth = float32(2.0 + float64(from_red) - float64(from_blue))
    else:
        sixth = float32(4.0 + float64(from_green) - float64(from_red))
    turn = float64(sixth) / 6.0 + 1.0
    return int32(float64(float32(turn - 1.0 if turn >= 1.0 else turn)) * 255.0)


@kernel
def _half_up(value):
    return uint8(int32(value + 0.5))

"""Parting what touches: seeds, and a flood from them over a landscape, from its heights down (a watershed).

Vincent and Soille, "Watersheds in digital spaces" (1991), with heights in steps: pixels of one step are taken in waves,
so that on flat ground the nearest seed gets them. Every pixel goes to a seed; no lines are left between.
"""

import cv2
import numpy as np

from isocenter.core.tensor import Array, FloatArray

_MOST_STEPS = 255
_PARTS_OF_A_PX = np.float32(16)
MOST_PX = 4000.0
"""Distances are told apart up to here: 16 bits hold them."""
# A wave is a breadth of pixels, so rounds like these reach any shape that is not a maze; what they do not reach, is
# given away in one go.
_MAX_WAVES = 4096
_MAX_DILATIONS = 512


def in_steps(landscape: FloatArray, mask: Array, *, lowest: float, step: float) -> Array:
    """Heights [H, W] as whole steps from 1 to 255 from the lowest one on, 0 outside of the mask.

    Whatever lies far away has no say in them: parts of an image give the steps of the whole.
    """
    inside = mask != 0
    steps = np.zeros(mask.shape, np.uint8)
    steps[inside] = np.clip(np.rint((landscape[inside] - lowest) / step) + 1, 1, _MOST_STEPS)
    return steps


def components(mask: Array, connectivity: int) -> Array:
    """Groups of neighbouring pixels, int32, numbered from 1."""
    return np.asarray(cv2.connectedComponents(mask, connectivity=connectivity, ltype=cv2.CV_32S)[1])


def deep_peaks(distance_px: FloatArray, depth_px: float, connectivity: int) -> Array:
    """Where peaks stand out by a depth from everything that connects them to a higher one (h-domes), 1, else 0.

    Two peaks over a saddle that is less deep are one. Distances are at most `MOST_PX`.
    """
    heights = np.rint(distance_px * _PARTS_OF_A_PX).astype(np.uint16)
    depth = max(1, round(depth_px * _PARTS_OF_A_PX))
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT if connectivity == 8 else cv2.MORPH_CROSS, (3, 3))
    level: Array = cv2.subtract(heights, np.full_like(heights, depth))
    for number in range(_MAX_DILATIONS):
        before = level
        level = np.minimum(cv2.dilate(before, kernel), heights)
        if number % 4 == 3 and np.array_equal(level, before):
            break
    above = heights - level
    domes = components((above > 0).astype(np.uint8), connectivity)
    tops = np.zeros(int(domes.max(initial=0)) + 1, bool)
    tops[domes[above >= depth]] = True
    tops[0] = False
    return tops[domes].astype(np.uint8)


def flood(whole: Array, seeds: Array, steps: Array, connectivity: int) -> Array:
    """Labels [H, W] int32: components of a mask, those with several seeds parted among them.

    `whole` and `seeds` are numbered groups [H, W]; every seed lies inside one component. `steps` are from `in_steps`.
    """
    parted = _parted(whole, seeds)
    count = len(parted) - 1
    several = parted[whole]
    if not several.any():
        return whole
    width = whole.shape[1] + 2
    labels = np.pad(np.where(several, np.where(seeds > 0, seeds + count, 0), whole), 1)
    ground = np.pad(np.where(several, steps, 0).astype(np.uint8), 1)
    flat, height = labels.ravel(), ground.ravel()
    sides = [-width, -1, 1, width] + ([-width - 1, 1 - width, width - 1, width + 1] if connectivity == 8 else [])
    start = np.flatnonzero((flat > count) & (height > 0)).astype(np.int32)
    _rise(flat, height, start, sides)
    if ground.any():
        _give_away(flat, ground, sides, connectivity)
    return np.ascontiguousarray(labels[1:-1, 1:-1])


def _parted(whole: Array, seeds: Array) -> Array:
    """For each component, whether it holds several seeds."""
    at = np.flatnonzero(seeds)
    owner = np.zeros(int(seeds.max(initial=0)) + 1, np.int32)
    owner[seeds.ravel()[at]] = whole.ravel()[at]
    found = np.bincount(owner, minlength=int(whole.max(initial=0)) + 1) > 1
    found[0] = False
    return found


def _rise(labels: Array, height: Array, start: Array, sides: list[int]) -> None:
    """Label the neighbours of what is labelled, highest first; `height` becomes 0 where it is done. Both are flat."""
    waiting, levels = start, height[start]
    height[start] = 0
    waves = 0
    for level in range(int(levels.max(initial=0)), 0, -1):
        ready = levels >= level
        now, later, later_levels = waiting[ready], [waiting[~ready]], [levels[~ready]]
        while len(now) and waves < _MAX_WAVES:
            waves += 1
            next_ = []
            for side in sides:  # one after the other, no pixel comes twice
                near = now + side
                reached = height[near]
                free = reached > 0
                near, reached = near[free], reached[free]
                labels[near] = labels[now[free]]
                height[near] = 0
                high = reached >= level
                next_.append(near[high])
                later.append(near[~high])
                later_levels.append(reached[~high])
            now = np.concatenate(next_)
        waiting, levels = np.concatenate(later), np.concatenate(later_levels)


def _give_away(labels: Array, ground: Array, sides: list[int], connectivity: int) -> None:
    """Give each group of pixels that no wave reached to one label beside it."""
    groups = components((ground > 0).astype(np.uint8), connectivity).ravel()
    at = np.flatnonzero(groups)
    label_of = np.zeros(int(groups.max()) + 1, labels.dtype)
    for side in sides:
        beside = labels[at + side]
        there = beside > 0
        label_of[groups[at[there]]] = beside[there]
    labels[at] = label_of[groups[at]]

#!/usr/bin/env python3
"""Records what Pillow and OpenCV make of small pictures: tests/fixtures/preprocess/{resize,vggt,da3}.npz.

    python3 -m venv VENV && VENV/bin/pip install numpy pillow opencv-python-headless
    VENV/bin/python tools/record_preprocessing.py

resize.npz   SOURCE (u8 [H,W,3]) and METHOD_SOURCE_WxH (u8): Pillow's bicubic, OpenCV's area and cubic resampling.
             OpenCV runs its own code: Intel IPP, where a build has it, rounds a few cubic values to the next level.
vggt.npz     in_N: the pictures (u8 RGB or RGBA); MODE_SIZE: the frames (u8 [S,H,W,3]) of VGGT's image loader, for all
             pictures together; MODE_SIZE_sample: every 1999th value of frames too large to store, with MODE_SIZE_shape.
da3.npz      the same for Depth Anything 3's input processor, in_N being RGB.

Both loaders are written down here in our own words, on the calls that the originals make.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "preprocess"
PATCH = 14


def picture(width: int, height: int, seed: int, channels: int = 3) -> np.ndarray:
    """Blocks of random colour with noise on top, so that edges overshoot and every rounding occurs."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, ((height + 6) // 7, (width + 4) // 5, channels))
    image = np.kron(blocks, np.ones((7, 5, 1), int))[:height, :width]
    return np.clip(image + rng.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)


def pillow(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Columns first, then rows, as Pillow did when the models were published; Pillow 13 picks the order by cost."""
    wide = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC))


def opencv(image: np.ndarray, width: int, height: int, grow: bool) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if grow else cv2.INTER_AREA)


def center(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The middle of the image, white where it is too small."""
    h, w = image.shape[:2]
    top, left = max(0, (h - height) // 2), max(0, (w - width) // 2)
    image = image[top : top + height, left : left + width]
    dy, dx = height - image.shape[0], width - image.shape[1]
    pads = ((dy // 2, dy - dy // 2), (dx // 2, dx - dx // 2), (0, 0))
    return np.pad(image, pads, constant_values=255)


def vggt(images: list[np.ndarray], mode: str, size: int) -> np.ndarray:
    frames = []
    for image in images:
        pil = Image.fromarray(image)
        if pil.mode == "RGBA":
            pil = Image.alpha_composite(Image.new("RGBA", pil.size, (255, 255, 255, 255)), pil)
        pil = pil.convert("RGB")
        w, h = pil.size
        if mode == "pad" and w < h:
            to = (round(w * (size / h) / PATCH) * PATCH, size)
        else:
            to = (size, round(h * (size / w) / PATCH) * PATCH)
        frame = pillow(np.asarray(pil), *to)
        frames.append(center(frame, size, size) if mode == "pad" else center(frame, size, min(to[1], size)))
    height, width = (max(f.shape[i] for f in frames) for i in (0, 1))
    return np.stack([center(f, width, height) for f in frames])


def da3(images: list[np.ndarray], method: str, resolution: int) -> np.ndarray:
    frames = []
    for image in images:
        h, w = image.shape[:2]
        side = max(h, w) if method.startswith("upper") else min(h, w)
        if side != resolution:
            scale = resolution / float(side)
            image = opencv(image, max(1, round(w * scale)), max(1, round(h * scale)), scale > 1)
        h, w = image.shape[:2]
        if method.endswith("resize"):
            nw, nh = (x // PATCH * PATCH + (PATCH if x % PATCH * 2 >= PATCH else 0) for x in (w, h))
            if (nw, nh) != (w, h):
                image = opencv(image, nw, nh, nw > w or nh > h)
        else:
            image = center(image, w // PATCH * PATCH, h // PATCH * PATCH)
        frames.append(image)
    height, width = (min(f.shape[i] for f in frames) for i in (0, 1))
    return np.stack([center(f, width, height) for f in frames])


def keep(arrays: dict[str, np.ndarray], name: str, value: np.ndarray) -> None:
    if value.size <= 10_000:
        arrays[name] = value
    else:
        arrays[f"{name}_sample"] = value.ravel()[::1999]
        arrays[f"{name}_shape"] = np.array(value.shape, np.int64)


def main() -> None:
    cv2.ipp.setUseIPP(False)
    OUT.mkdir(parents=True, exist_ok=True)

    arrays = {"a": picture(31, 23, 1), "b": picture(1, 65, 2), "c": picture(48, 36, 3)}
    for source, sizes in {
        "a": [(31, 23), (56, 42), (14, 14), (31, 9), (35, 23), (1, 1), (29, 21)],
        "b": [(1, 64), (3, 63), (1, 65)],
        "c": [(24, 18), (16, 12), (21, 16), (48, 12), (49, 48), (47, 35)],
    }.items():
        image = arrays[source]
        for w, h in sizes:
            arrays[f"pillow_{source}_{w}x{h}"] = pillow(image, w, h)
            arrays[f"cubic_{source}_{w}x{h}"] = opencv(image, w, h, True)
            if w <= image.shape[1] and h <= image.shape[0]:
                arrays[f"area_{source}_{w}x{h}"] = opencv(image, w, h, False)
    np.savez_compressed(OUT / "resize.npz", **arrays)

    images = [picture(61, 40, 4), picture(33, 70, 5, 4), picture(50, 50, 6)]
    arrays = {f"in_{i}": image for i, image in enumerate(images)}
    for mode in ("crop", "pad"):
        for size in (28, 518):
            keep(arrays, f"{mode}_{size}", vggt(images, mode, size))
    np.savez_compressed(OUT / "vggt.npz", **arrays)

    images = [picture(61, 40, 7), picture(47, 70, 8), picture(90, 89, 9)]
    arrays = {f"in_{i}": image for i, image in enumerate(images)}
    for bound in ("upper_bound", "lower_bound"):
        for end in ("resize", "crop"):
            for resolution in (28, 504):
                keep(arrays, f"{bound}_{end}_{resolution}", da3(images, f"{bound}_{end}", resolution))
    np.savez_compressed(OUT / "da3.npz", **arrays)

    for path in sorted(OUT.glob("*.npz")):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()

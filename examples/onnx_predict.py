"""Predict an image with an exported run, without torch: `python examples/onnx_predict.py EXPORT IMAGE [LR_IMAGE]`."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def run(session, inputs):
    """The output of a graph; ends with one line where an input has not the shape that the graph takes."""
    open_sizes = {}  # what "batch" and "patches" stand for in this call
    for wanted in session.get_inputs():
        shape = list(inputs[wanted.name].shape)
        sizes = zip(wanted.shape, shape, strict=False)
        if shape != [open_sizes.setdefault(w, s) if isinstance(w, str) else w for w, s in sizes]:
            sys.exit(f"error: {wanted.name} has the shape {shape}, the model takes {wanted.shape}")
    return session.run(None, inputs)[0]


def fitted(path, channels, size):
    """An image file, scaled to cover ``size`` (height, width) and cut to it around its centre."""
    image = ImageOps.exif_transpose(Image.open(path)).convert({1: "L", 3: "RGB"}[channels])
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)


def pixels_of(image):
    """``(C, height, width)`` uint8."""
    return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def averaged(image, size):
    """LR as training made it: each of its pixels is the mean of the HR pixels under it."""
    sides = [(length, np.arange(parts)[:, None], parts) for length, parts in zip(image.shape[1:], size, strict=True)]
    under = [(np.arange(n) >= i * n // parts) & (np.arange(n) < -(-(i + 1) * n // parts)) for n, i, parts in sides]
    sums = np.einsum("hi,wj,cij->chw", *(u.astype(float) for u in under), image.astype(float))
    return np.rint(sums / np.outer(*(u.sum(1) for u in under))).astype(np.uint8)


def main(folder, path, low_path=None):
    """Look at LR, choose, cut only the chosen patches out of HR, classify."""
    model = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
    if low_path is None and model["low_from"] == "own":
        sys.exit("error: the model takes LR images of their own; give one as the third argument")
    onnxruntime.set_default_logger_severity(3)  # errors; it remarks on weights that it drops as unused
    files = (Path(folder) / model[name]["file"] for name in ("policy", "classifier"))
    policy, classifier = (onnxruntime.InferenceSession(file) for file in files)
    channels, high = model["channels"], None
    if low_path is None:
        high = fitted(path, channels, model["high"])
        low = averaged(pixels_of(high), model["low"])[None]
    else:
        low = pixels_of(fitted(low_path, channels, model["low"]))[None]

    scores = run(policy, {"low": low})[0]
    chosen = np.flatnonzero(scores / model["choice"]["temperature"] >= model["choice"]["threshold"])
    pixels = np.zeros((len(chosen), channels, *model["patch"]), np.uint8)  # smaller patches end in zeros
    for place, number in zip(pixels, chosen, strict=True):
        high = high or fitted(path, channels, model["high"])  # beside an LR image, opened only where a patch is chosen
        top, left, bottom, right = model["boxes"][number]
        place[:, : bottom - top, : right - left] = pixels_of(high.crop((left, top, right, bottom)))

    packed = {"pixels": pixels, "image": np.zeros(len(chosen), np.int64), "patch": chosen}
    logits = run(classifier, {**packed, "low": low})[0]
    print(model["classes"][logits.argmax()], "patches", *chosen)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")

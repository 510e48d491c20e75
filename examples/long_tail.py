"""Write a long-tailed part of a classification dataset as class folders, e.g. CIFAR-10-LT (Cui et al., CVPR 2019).

Of K classes with N training images each, class k keeps the first N / RATIO^(k / (K - 1)). All validation images are
kept.

Usage: python examples/long_tail.py DATA FOLDER [RATIO]
"""

import sys
from pathlib import Path

import numpy as np

from smt_vision.data.decode import decode
from smt_vision.tasks.classification.data.sources import open_dataset


def main(data: str, folder: Path, ratio: float) -> None:
    train, val = open_dataset(data, "train"), open_dataset(data, "val")
    largest, steps = int(np.bincount(train.targets).max()), len(train.classes) - 1
    counts = [int(largest / ratio ** (k / steps)) for k in range(steps + 1)]
    rows = np.concatenate([np.flatnonzero(train.targets == k)[:count] for k, count in enumerate(counts)])
    for split, images in (("train", train.select(rows)), ("val", val)):
        for name in images.classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(len(images)):
            raw, target, name = images.read(i)
            decode(raw, 3, name=name).save(folder / split / images.classes[target] / f"{i:06}.png")
    print(f"{folder}: {', '.join(f'{n} {name}' for n, name in zip(counts, train.classes, strict=True))}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 100.0)

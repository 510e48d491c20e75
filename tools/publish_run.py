"""Copy the small results of a detection or segmentation run into a folder of docs/results/.

    python tools/publish_run.py runs/camvid docs/results/camvid

Writes the recipe, the training log, the metrics, the curves, the confusion matrix if there is one, and the samples of
the best epoch; of the dataset's path only the last part is kept.
"""

import json
import shutil
import sys
from pathlib import Path

import yaml
from PIL import Image

from smt_vision import checkpoints

QUALITY = 88  # JPEG quality of the samples: a fifth of the PNG's size


def main(run: Path, results: Path) -> None:
    results.mkdir(parents=True, exist_ok=True)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"] = Path(recipe["data"]).name
    (results / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics.pop("worst", None)  # thumbnails, base64-encoded
    (results / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    for file in ("log.jsonl", "curves.png", "confusion.png"):
        if (run / file).is_file():
            shutil.copy(run / file, results / file)
    epoch = checkpoints.load(run).state["epoch"]
    with Image.open(run / "samples" / f"epoch_{epoch:03d}.png", formats=["PNG"]) as picture:
        picture.convert("RGB").save(results / "samples.jpg", quality=QUALITY, optimize=True)
    print(f"{results}: epoch {epoch}; {', '.join(sorted(path.name for path in results.iterdir()))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

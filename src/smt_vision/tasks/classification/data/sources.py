"""``open_dataset``: from the name of a source to its labelled images."""

from pathlib import Path

from ....data.dataset import Split
from .dataset import ImageDataset
from .folders import open_folder, open_tar_of_folders
from .hub import open_digits, open_hub, open_torchvision
from .shards import expand_shards, folder_of_shards, open_shards

TARS = (".tar", ".tar.gz", ".tgz")


def open_dataset(
    source: str, split: Split, *, val_fraction: float = 0.1, seed: int = 0, download: bool = True
) -> ImageDataset:
    """Open one split of a labelled set of images.

    Args:
        source: where the images are:

            - a folder, or a tar of one: class folders under train/ and one of val/, valid/, validation/, test/, or
              class folders alone, which are then split here. Classes are numbered in timm's natural order.
              A compressed tar is unpacked once, under ``$SMT_CACHE_DIR`` or ``~/.cache/smt-vision``;
            - ``wds/PATTERN``, or a path with braces or of a folder of .tar files: webdataset shards, labels in .cls
              or .json, names of the classes in classes.txt beside them;
            - ``torch/NAME``: a set of torchvision, as ``torch/cifar10``;
            - ``hfds/NAME``: a set of the Hugging Face hub, or a local folder of its form;
            - ``auto``: 5,000 handwritten digits, which need no network.
        split: ``train`` or ``val``.
        val_fraction: share held out, stratified, of a source without a validation split; 1 for all of it.
        seed: which images are held out.
        download: whether ``torch/NAME`` may download.

    Returns:
        The images, not decoded.

    Raises:
        ValueError: the source does not exist or does not have the form that is expected.
        ImportError: a package of an extra is missing.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', not {split!r}")
    kind, _, name = source.partition("/")
    if source == "auto":
        return open_digits(split, val_fraction, seed)
    if kind == "torch" and name:
        return open_torchvision(name, split, download)
    if kind == "hfds" and name:
        return open_hub(name, split, val_fraction, seed)
    if kind == "wds" and name:
        root = Path(name).expanduser()
        shards = folder_of_shards(root) if root.is_dir() else expand_shards(str(root))
        return open_shards(shards, source, split, val_fraction, seed)
    if "{" in source and source.endswith(".tar"):
        return open_shards(expand_shards(str(Path(source).expanduser())), source, split, val_fraction, seed)
    path = Path(source).expanduser()
    if path.is_dir():
        if shards := folder_of_shards(path):
            return open_shards(shards, source, split, val_fraction, seed)
        return open_folder(path, split, val_fraction, seed)
    if path.is_file() and path.name.endswith(TARS):
        return open_tar_of_folders(path, split, val_fraction, seed)
    problem = "is a file of another kind" if path.exists() else "does not exist"
    raise ValueError(
        f"data {source!r} {problem}; expected a folder of class folders, a tar of one ({', '.join(TARS)}), "
        "wds/PATTERN, torch/NAME, hfds/NAME or auto (on the command line: --data)"
    )

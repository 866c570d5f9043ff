"""Tiny image data sets in the layouts that real ones have."""

import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n02102040")


def write_folders(
    root: Path, *, classes: tuple[str, ...] = WNIDS, train: int = 4, val: int = 2, size: int = 40
) -> Path:
    """``root/train/CLASS/x.JPEG`` and ``root/val/CLASS/x.JPEG``, as ImageNet is unpacked; each class has a color."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(0, 60, (size, size + 8, 3))
                noise[..., label % 3] += 150
                Image.fromarray(noise.astype("uint8")).save(folder / f"{name}_{number}.JPEG", quality=95)
    return root


def write_tars(root: Path, folders: Path) -> Path:
    """``root/train.tar``, a tar of one tar per class as ImageNet's is, and ``root/val.tar`` with a folder per class."""
    root.mkdir()
    with tarfile.open(root / "train.tar", "w") as outer:
        for folder in sorted((folders / "train").iterdir()):
            with tarfile.open(root / f"{folder.name}.tar", "w") as inner:
                for file in sorted(folder.iterdir()):
                    inner.add(file, arcname=file.name)
            outer.add(root / f"{folder.name}.tar", arcname=f"{folder.name}.tar")
            (root / f"{folder.name}.tar").unlink()
    with tarfile.open(root / "val.tar", "w") as tar:
        for folder in sorted((folders / "val").iterdir()):
            tar.add(folder, arcname=folder.name)
    return root


def write_torchvision(root: Path, folders: Path) -> Path:
    """What ``torchvision.datasets.ImageNet`` finds after it has unpacked the archives: folders and ``meta.bin``."""
    root.mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(folders / split, target_is_directory=True)
    names = {wnid: (f"name of {wnid}", "other name") for wnid in WNIDS}
    torch.save((names, [WNIDS[0]]), root / "meta.bin")
    return root

"""Class folders promise: torchvision's files and labels; ImageNet-V2's folders by number."""

from __future__ import annotations

import pytest
import torchvision.datasets

from fastclip.data.imagenet import imagenet_files, imagenet_v2_files
from fastclip.errors import DataError, InputMissing
from tests.data.shard_files import jpeg


def test_files_and_labels_are_torchvisions(tmp_path):
    for number, name in enumerate(["n02", "n01", "Z", "n10", "n9"]):
        folder = tmp_path / name
        (folder / "b" / "c").mkdir(parents=True)
        for file in ("2.JPEG", "10.jpg", "1.png", "notes.txt", "b/x.webp", "b/c/y.jpeg", "b.bmp"):
            (folder / file).write_bytes(jpeg(number))
    (tmp_path / "readme.txt").touch()
    ours = imagenet_files(str(tmp_path), "--imagenet-val")
    assert [tuple(file) for file in ours] == torchvision.datasets.ImageFolder(str(tmp_path)).samples
    assert len(ours) == 30


@pytest.mark.parametrize(
    "inner", [".", "ImageNetV2-matched-frequency", "imagenetv2-matched-frequency-format-val"]
)
def test_v2_labels_are_the_numbers_that_name_the_folders(tmp_path, inner):
    for number in (0, 2, 10, 100, 999, 9):
        folder = tmp_path / inner / str(number)
        folder.mkdir(parents=True)
        (folder / f"{number}-b.jpeg").touch()
        (folder / f"{number}-a.jpeg").touch()
    files = imagenet_v2_files(str(tmp_path), "--imagenet-v2")
    # reference (imagenetv2_pytorch): the label is int(name of the folder)
    assert [file.label for file in files] == [n for n in (0, 2, 9, 10, 100, 999) for _ in "ab"]
    assert all(f"/{label}/{label}-" in path for path, label in files)


@pytest.mark.parametrize("read", [imagenet_files, imagenet_v2_files])
def test_what_is_no_set_of_class_folders_is_one_clear_line(tmp_path, read):
    flag = "--imagenet-x"
    with pytest.raises(InputMissing, match=r"--imagenet-x .*/no: no such folder"):
        read(str(tmp_path / "no"), flag)
    with pytest.raises(InputMissing, match="no class folders"):
        read(str(tmp_path), flag)
    (tmp_path / "0").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        read(str(tmp_path), flag)


def test_v2_refuses_names_that_are_no_numbers(tmp_path):
    (tmp_path / "n01440764").mkdir()
    with pytest.raises(DataError, match="found 'n01440764'"):
        imagenet_v2_files(str(tmp_path), "--imagenet-v2")

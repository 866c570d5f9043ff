import logging
from pathlib import Path

import pytest

from preconditioned_attention.lab.data.pathfinder import (
    PathfinderOptions,
    make_image,
    make_pathfinder,
    read_pathfinder,
    split_pathfinder,
    write_pathfinder,
)

EASY = PathfinderOptions(count=12, difficulty="easy", seed=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pathfinder(tmp_path / "pathfinder32", EASY)


def test_what_is_read_is_what_was_drawn(folder: Path) -> None:
    assert folder.name == "curv_baseline"
    images = read_pathfinder(folder)
    drawn = list(make_pathfinder(EASY))
    assert len(images) == len(drawn) == 12
    assert [images.read(index) for index in range(12)] == [drawing.image.tobytes() for drawing in drawn]
    assert images.labels == [drawing.label for drawing in drawn]
    ids, label = images[3]
    assert (ids.tolist(), label) == (drawn[3].image.flatten().tolist(), drawn[3].label)


def test_the_layout_is_the_releases(folder: Path) -> None:
    lines = (folder / "metadata" / "0.npy").read_text().splitlines()
    label = make_image(EASY, 7).label
    assert lines[7] == f"imgs/0 sample_7.png 7 {label} 1.0 6 2 2 0.5 1 1"
    assert sorted(path.name for path in (folder / "imgs" / "0").iterdir()) == sorted(
        f"sample_{number}.png" for number in range(12)
    )


def test_an_image_depends_on_seed_number_and_difficulty_alone() -> None:
    images = [make_image(EASY, number).image.tobytes() for number in range(3)]
    longer = PathfinderOptions(count=500, difficulty="easy", seed=2)
    assert images == [make_image(longer, number).image.tobytes() for number in range(3)]
    assert len(set(images)) == 3
    assert make_image(PathfinderOptions(count=12, difficulty="easy", seed=3), 0).image.tobytes() != images[0]


@pytest.mark.slow
def test_the_same_for_any_number_of_processes() -> None:
    options = PathfinderOptions(count=120, difficulty="easy")
    alone, shared = make_pathfinder(options), make_pathfinder(options, workers=2)
    assert [(d.image.tobytes(), d.label) for d in alone] == [(d.image.tobytes(), d.label) for d in shared]


def test_three_difficulties_lie_side_by_side(folder: Path) -> None:
    other = PathfinderOptions(count=1, difficulty="intermediate")
    assert write_pathfinder(folder.parent, other).name == "curv_contour_length_9"
    with pytest.raises(ValueError, match=r"curv_baseline exists already"):
        write_pathfinder(folder.parent, EASY)


def test_splits_are_disjoint_and_whole(folder: Path) -> None:
    images = read_pathfinder(folder)
    splits = split_pathfinder(images)
    assert [len(split) for split in splits] == [8, 2, 2]
    assert sorted(path for split in splits for path in split.paths) == sorted(images.paths)
    assert splits[0].paths != split_pathfinder(images, split_seed=1)[0].paths
    assert all(split.labels[0] == images.labels[images.paths.index(split.paths[0])] for split in splits)
    with pytest.raises(ValueError, match="at least ten images are needed for three splits; got 3"):
        split_pathfinder(images.subset([0, 1, 2]))


def test_an_image_of_no_bytes_is_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "imgs" / "0" / "sample_5.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        images = read_pathfinder(folder)
    assert len(images) == 11
    assert "1 image(s) of no bytes left out, 11 remain" in caplog.text


def test_a_truncated_image_is_named_with_its_line(folder: Path) -> None:
    path = folder / "imgs" / "0" / "sample_5.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(OSError, match=r"image .*sample_5\.png \(.*0\.npy, line 6\) cannot be read"):
        read_pathfinder(folder)[5]


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        (" 1.0 6 2 2 0.5 1 1", "", ValueError, r"0\.npy, line 1: 11 columns with blanks between .*; got 4"),
        (
            "sample_3.png 3",
            "sample_33.png 3",
            FileNotFoundError,
            r"0\.npy, line 4 names .*sample_33\.png, which is not",
        ),
        ("sample_3.png 3 {label} ", "sample_3.png 3 2 ", ValueError, r"line 4: the label must be 0 or 1; got '2'"),
    ],
)
def test_broken_metadata(folder: Path, old: str, new: str, error: type, message: str) -> None:
    path = folder / "metadata" / "0.npy"
    old = old.replace("{label}", str(make_image(EASY, 3).label))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(error, match=message):
        read_pathfinder(folder)


def test_no_metadata_and_no_text(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no metadata/\*\.npy; it must be one of curv_baseline"):
        read_pathfinder(tmp_path)
    (folder / "metadata" / "0.npy").write_bytes(b"imgs/0 sample_0.png 0 \xff 1.0 6 2 2 0.5 1 1\n")
    with pytest.raises(ValueError, match=r"0\.npy, line 1 is not UTF-8"):
        read_pathfinder(folder)
    (folder / "metadata" / "0.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"0\.npy is empty"):
        read_pathfinder(folder)


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="difficulty must be one of 'easy', 'intermediate', 'hard'; got 'baseline'"):
        PathfinderOptions(difficulty="baseline")
    with pytest.raises(ValueError, match="count must be at least 1"):
        PathfinderOptions(count=0)

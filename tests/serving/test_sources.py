from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from serving.messages import EncodedImage, RawImage
from serving.sources import FileSource, VideoSource, natural_key, open_source
from tests.fakes import part
from tests.serving.conftest import png
from vision.errors import DataError
from vision.preprocess import PixelFormat, decode_raw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/part10.png", "b/part2.PNG", "a/part1.png", "notes.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(part()) if path.suffix.lower() == ".png" else b"a,b\n")
    return tmp_path


def test_folders_are_searched_to_their_bottom_in_natural_order(folder: Path) -> None:
    source = open_source(str(folder))
    assert isinstance(source, FileSource)
    frames = list(source)
    assert [frame.name for frame in frames] == ["a/part1.png", "b/part2.PNG", "b/part10.png"]
    assert len(source) == 3
    assert frames[0].image == EncodedImage((folder / "a/part1.png").read_bytes())


def test_globs_and_single_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [frame.name for frame in open_source(f"{folder}/**/part1*.png")]
    assert names == ["a/part1.png", "b/part10.png"]
    monkeypatch.chdir(folder)
    assert [frame.name for frame in open_source("b/part*")] == ["part2.PNG", "part10.png"]
    assert [frame.name for frame in open_source("../" + folder.name + "/b/part2*")] == ["part2.PNG"]
    assert [frame.name for frame in open_source("a/part1.png")] == ["part1.png"]


def test_a_file_that_cannot_be_read_is_named_and_the_others_go_on(folder: Path) -> None:
    source = open_source(str(folder))
    (folder / "a/part1.png").unlink()
    frames = list(source)
    assert isinstance(frames[0].error, DataError)
    assert "part1.png" in str(frames[0].error)
    assert [frame.error for frame in frames[1:]] == [None, None]


def test_videos_are_sent_as_raw_pixels(tmp_path: Path) -> None:
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    red = np.zeros((64, 96, 3), np.uint8)
    red[:, :, 2] = 255
    for _ in range(5):
        writer.write(red)
    writer.release()
    source = open_source(str(path))
    assert isinstance(source, VideoSource)
    assert source.length == 5
    frames = list(source)
    assert [frame.name for frame in frames[:2]] == ["line_000000", "line_000001"]
    assert len(frames) == 5
    image = frames[0].image
    assert isinstance(image, RawImage)
    assert image.pixel_format is PixelFormat.BGR8
    pixels = decode_raw(image.data, width=96, height=64, stride=0, pixel_format=image.pixel_format)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() < 10


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere", "no folder, file or camera"),
        (lambda folder: folder / "*.bmp", "quote the pattern"),
        (lambda folder: folder / "notes.csv", "cannot be opened"),
        (lambda folder: folder / "empty", "has no image"),
        (lambda _: "63", "camera 63 cannot be opened"),
    ],
)
def test_what_cannot_be_a_source_is_said(folder: Path, make: object, words: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        open_source(str(make(folder)))  # type: ignore[operator]


def test_numbers_sort_by_value() -> None:
    assert sorted(["p10", "p9", "P1", "a", "10", "9b"], key=natural_key) == ["9b", "10", "a", "P1", "p9", "p10"]

"""Where ``defectlens inspect`` takes its frames from: a folder, a glob, a video or a camera."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from serving.messages import EncodedImage, RawImage
from vision.errors import DataError
from vision.preprocess import SUFFIXES, PixelFormat

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """A named frame; ``name`` is a path relative to the source. ``image`` is None if ``error`` is set."""

    name: str
    path: str
    image: EncodedImage | RawImage | None = None
    error: DataError | None = None


class FileSource:
    """Image files, sent byte for byte as they are, in natural order (``part2`` before ``part10``)."""

    is_live = False

    def __init__(self, root: Path, files: list[Path]) -> None:
        self._root = root
        self._files = sorted(files, key=lambda path: natural_key(str(path)))

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> tuple[Path, ...]:
        """In order."""
        return tuple(self._files)

    def __iter__(self) -> Iterator[SourceFrame]:
        for path in self._files:
            name = path.relative_to(self._root).as_posix()
            try:
                yield SourceFrame(name, str(path), EncodedImage(path.read_bytes()))
            except OSError as error:  # one unreadable file must not end a day's inspection
                yield SourceFrame(name, str(path), error=DataError(f"{path} cannot be read: {error.strerror}"))


class VideoSource:
    """A video file, stream address or camera, sent as raw BGR8 pixels. The length is None where it has no known end.

    Raises:
        DataError: it cannot be opened, or gives no frame at all.
    """

    def __init__(self, target: str | int) -> None:
        self._label = f"camera{target}" if isinstance(target, int) else Path(target).stem or "video"
        self._target = target
        self.is_live = isinstance(target, int) or "://" in target
        cv2.utils.logging.setLogLevel(
            cv2.utils.logging.LOG_LEVEL_SILENT
        )  # what cannot be opened is reported below, once and in our words
        self._capture = cv2.VideoCapture(target)
        if not self._capture.isOpened():
            what = f"camera {target}" if isinstance(target, int) else f"the video {target}"
            raise DataError(f"{what} cannot be opened; check that it is there, readable and not in use")
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = count if count > 0 and not self.is_live else None

    def __iter__(self) -> Iterator[SourceFrame]:
        index = 0
        try:
            while True:
                there, pixels = self._capture.read()
                if not there:
                    break
                name = f"{self._label}_{index:06d}"
                yield SourceFrame(name, f"{self._target}#{index}", _raw(pixels))
                index += 1
        finally:
            self._capture.release()
        if index == 0:
            raise DataError(f"{self._target} can be opened but gives no frame; is it a video?")


def open_source(text: str) -> FileSource | VideoSource:
    """A folder (searched to its bottom), glob, image file, video file or address, or the index of a camera.

    Raises:
        DataError: there is nothing, or nothing that can be read.
    """
    path = Path(text)
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES]
        if not files:
            raise DataError(f"the folder {path} has no image ({', '.join(SUFFIXES)}), not in its subfolders either")
        return FileSource(path, files)
    if path.is_file():
        return FileSource(path.parent, [path]) if path.suffix.lower() in SUFFIXES else VideoSource(text)
    if text.isdigit():
        return VideoSource(int(text))
    if "://" in text:
        return VideoSource(text)
    if _GLOB.search(text):
        # Path.glob takes no pattern that starts at the root or climbs with `..`.
        names = glob.glob(text, recursive=True)  # noqa: PTH207
        files = [file for name in names if (file := Path(name)).is_file()]
        if not files:
            raise DataError(f"no file matches {text}; quote the pattern so that it arrives whole")
        root = Path(_GLOB.split(text, maxsplit=1)[0] + "x").parent  # the folder before the first wildcard
        return FileSource(root, files)
    raise DataError(
        f"{text} is no folder, file or camera; give a folder, a quoted glob, an image, a video or a camera's index"
    )


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sorts numbers inside names by value."""
    return [(0, int(part)) if part.isdecimal() else (1, part.casefold()) for part in re.split(r"(\d+)", text) if part]


def _raw(pixels: Any) -> RawImage:
    frame = np.ascontiguousarray(pixels, np.uint8)
    height, width = frame.shape[:2]
    pixel_format = PixelFormat.MONO8 if frame.ndim == 2 else PixelFormat.BGR8
    return RawImage(frame.tobytes(), width, height, pixel_format)

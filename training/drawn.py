"""Overlays of every image of an evaluation: a picture each, and all of them on one page."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Literal

import cv2

from training.data import Sample, read_frame
from training.scan import relative
from vision.bundle import Manifest
from vision.lot_page import LotPage
from vision.overlay import render_overlay
from vision.types import Inspection

Kind = Literal["jpeg", "png"]

_JPEG_QUALITY = 88


class Overlays:
    """Open it as a context manager and ``add`` images: writes ``overlays/`` and ``lot.html`` into a folder.

    Args:
        out: the folder, which must be there.
        root: of the data; pictures are named by the paths below it.
        kind: of the pictures; the page always holds JPEGs.
        class_name: show the evidence for this class; None shows the anomaly map.
        full_colour: see ``render_overlay``.
    """

    def __init__(
        self,
        out: Path,
        manifest: Manifest,
        root: Path,
        white_level: int,
        *,
        kind: Kind = "jpeg",
        class_name: str | None = None,
        full_colour: float | None = None,
    ) -> None:
        self._out, self._manifest, self._root, self._white_level = out / "overlays", manifest, root, white_level
        self._suffix = ".png" if kind == "png" else ".jpg"
        self._class_name, self._full_colour = class_name, full_colour
        scale = "the bundle's" if full_colour is None else f"full at {full_colour:g}"
        about = f"{manifest.name} {manifest.version}; one colour scale for all frames: {scale}"
        self._page = LotPage(out / "lot.html", f"Lot {root.name}", about)

    def __enter__(self) -> Overlays:
        self._page.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._page.__exit__(kind, error, traceback)

    def add(self, sample: Sample, inspection: Inspection) -> None:
        """Draw one image."""
        picture = render_overlay(
            read_frame(sample.path, self._white_level),
            inspection,
            self._manifest,
            class_name=self._class_name,
            full_colour=self._full_colour,
        )
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
        name = relative(sample.path, self._root)
        # The whole name stays, with its suffix: part.png and part.bmp are two parts.
        path = self._out / f"{name}{self._suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg if self._suffix == ".jpg" else cv2.imencode(".png", bgr)[1].tobytes())
        reason = f"truly {sample.label}, predicted {inspection.predicted}: {inspection.reason}"
        self._page.add(name, inspection.verdict, reason, inspection.anomaly_score, jpeg)

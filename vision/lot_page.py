"""A lot on one page: every frame's overlay in one HTML file that needs nothing else, written frame by frame."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from types import TracebackType
from typing import IO

from vision.types import Verdict


class LotPage:
    """Open it as a context manager and ``add`` frames; the page is whole when it closes.

    Args:
        path: the file to write.
        title: of the page.
        about: a line below it, such as which model gave the verdicts.
    """

    def __init__(self, path: Path, title: str, about: str) -> None:
        template = Path(__file__).with_name("lot.html").read_text(encoding="utf-8")
        filled = template.replace("[title]", html.escape(title)).replace("[about]", html.escape(about))
        self._head, self._tail = filled.split("[frames]\n")
        self._path = path
        self._stream: IO[str] | None = None

    def __enter__(self) -> LotPage:
        self._stream = self._path.open("w", encoding="utf-8")
        self._stream.write(self._head)
        return self

    def add(self, name: str, verdict: Verdict, reason: str, score: float | None, picture: bytes) -> None:
        """One frame; ``score`` orders the page, ``picture`` is a JPEG or PNG file."""
        if self._stream is None:
            raise ValueError("the page is not open; use it in a with statement")
        kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
        data = base64.b64encode(picture).decode()
        order = "" if score is None else f"{score:.9g}"
        self._stream.write(
            f'<figure data-verdict="{verdict.name}" data-score="{order}">'
            f'<img loading="lazy" src="data:image/{kind};base64,{data}" alt="overlay of {html.escape(name)}">'
            f"<figcaption><b>{html.escape(name)}</b><br>{html.escape(reason)}</figcaption></figure>\n"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.write(self._tail)
            self._stream.close()

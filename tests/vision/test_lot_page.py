from __future__ import annotations

import re
from pathlib import Path

from vision.lot_page import LotPage
from vision.types import Verdict


def test_a_page_holds_every_frame_and_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "lot.html"
    with LotPage(path, "Lot <7>", "model & version") as page:
        page.add("a/<b>.png", Verdict.REJECT, "score 5 >= 2", 5.25, b"\xff\xd8jpeg")
        page.add("good.png", Verdict.PASS, "fine", None, b"\x89PNG....")
    text = path.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert text.rstrip().endswith("</html>")
    assert "<title>Lot &lt;7&gt;</title>" in text
    assert "model &amp; version" in text
    assert "a/&lt;b&gt;.png" in text
    assert '<figure data-verdict="REJECT" data-score="5.25">' in text
    assert '<figure data-verdict="PASS" data-score="">' in text
    assert len(re.findall(r'src="data:image/jpeg;base64,', text)) == 1
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 1
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_an_interrupted_lot_is_still_a_whole_page(tmp_path: Path) -> None:
    path = tmp_path / "lot.html"
    try:
        with LotPage(path, "Lot", "model") as page:
            page.add("one.png", Verdict.PASS, "fine", 0.1, b"\xff\xd8")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert path.read_text().rstrip().endswith("</html>")

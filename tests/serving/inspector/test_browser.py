"""The page in a real Chromium, by keyboard alone wherever there is a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.audit import PersonVerdict, Review, Store, actions, reviews_of, waiting
from tests.serving.audit.making import answer
from tests.serving.inspector.conftest import PASSWORD, Page
from tests.serving.inspector.plates import fill
from vision.types import Verdict

pytestmark = pytest.mark.slow

OTHER_PART = "(seq) => (document.getElementById('part-data')?.dataset.seq ?? String(seq)) !== String(seq)"
"""Another part than ``seq`` is shown; while a page is being loaded there is none."""

AXE = (Path(__file__).with_name("vendor") / "axe.min.js").read_text(encoding="utf-8")
DESK, TABLET = {"width": 1280, "height": 720}, {"width": 820, "height": 1180}


class Window:
    """A browser's window on the page; nothing may be written to its console."""

    def __init__(self, browser: Any, page: Page, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": DESK} | options))
        self.tab = self.context.new_page()
        self.url, self.store = page.url, page.store
        self.problems: list[str] = []
        self.tab.on("console", lambda message: self.problems.append(message.text) if message.type != "log" else None)
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))

    def sign_in(self, name: str) -> None:
        self.tab.goto(self.url)
        self.tab.wait_for_selector("input[autofocus]:focus")  # what is typed before goes nowhere
        self.tab.keyboard.type(name)
        self.tab.keyboard.press("Tab")
        self.tab.keyboard.type(PASSWORD)
        self.tab.keyboard.press("Enter")
        self.tab.wait_for_selector("header.top")

    def go(self, address: str) -> None:
        self.tab.goto(self.url + address)

    def part(self) -> int:
        """The part whose overlay is on the screen."""
        self.tab.wait_for_function(
            "() => window.review?.seq"
            " && window.review.seq === Number(document.getElementById('part-data')?.dataset.seq)"
            " && !document.getElementById('panel').dataset.busy"
        )
        return int(self.tab.evaluate("window.review.seq"))

    def press(self, key: str) -> int:
        """Press a key that leads to another part; that part."""
        before = self.tab.evaluate("window.review.seq")
        self.tab.keyboard.press(key)
        self.tab.wait_for_function(
            "(before) => (document.getElementById('part-data')?.dataset.seq ?? String(before)) !== String(before)",
            arg=before,
        )
        return self.part()

    def axe(self) -> list[str]:
        """What axe-core finds wrong with what is on the screen."""
        # Through the debugger, which the page's policy does not bind.
        self.tab.evaluate(AXE)
        found = self.tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found["violations"]]


@pytest.fixture
def window(browser: Any, page: Page, request: pytest.FixtureRequest) -> Iterator[Window]:
    opened = Window(browser, page, **getattr(request, "param", {}))
    yield opened
    opened.context.close()
    assert opened.problems == []


def said(store: Store, seq: int) -> Review:
    record = reviews_of(store, seq)[-1].record
    assert isinstance(record, Review)
    return record


def test_a_shift_at_the_queue_by_keyboard(window: Window) -> None:
    window.sign_in("eva")
    first = window.part()
    second = window.press("a")
    agreed = said(window.store, first)
    assert (agreed.verdict, agreed.label) == (PersonVerdict.DEFECT, window.store.answer(first).predicted)
    third = window.press("g")
    assert said(window.store, second).verdict is PersonVerdict.GOOD
    fourth = window.press("2")
    assert said(window.store, third).label == "scratch"
    window.tab.keyboard.press("n")
    window.tab.keyboard.type("gx1 are letters here")
    window.tab.keyboard.press("Escape")
    fifth = window.press("u")
    assert (said(window.store, fourth).verdict, said(window.store, fourth).note) == ("unsure", "gx1 are letters here")
    assert window.press("x") != fifth
    assert reviews_of(window.store, fifth) == []
    assert window.press("z") == fourth
    assert said(window.store, fourth).verdict is PersonVerdict.WITHDRAWN
    window.tab.keyboard.press("o")
    window.tab.keyboard.type("burr")
    window.tab.keyboard.press("Enter")
    window.tab.wait_for_function(OTHER_PART, arg=fourth)
    assert said(window.store, fourth).label == "burr"


def test_working_through_everything_ends_with_an_empty_queue(window: Window) -> None:
    window.sign_in("eva")
    total = waiting(window.store)
    for _ in range(total.doubtful + total.sampled - 1):
        window.part()
        window.press("g" if "Good part" in window.tab.inner_text("#panel") else "a")
    window.tab.keyboard.press("g" if "Good part" in window.tab.inner_text("#panel") else "a")
    window.tab.wait_for_selector("text=All done")
    assert waiting(window.store).doubtful == waiting(window.store).sampled == 0
    assert window.axe() == []


def test_a_key_held_down_speaks_about_one_part(window: Window) -> None:
    window.sign_in("eva")
    first = window.part()
    window.tab.evaluate(
        "const press = () => new KeyboardEvent('keydown', {key: 'g', bubbles: true});"
        "for (let i = 0; i < 5; i += 1) document.body.dispatchEvent(press())"
    )
    window.tab.wait_for_function(OTHER_PART, arg=first)
    window.part()
    window.tab.wait_for_timeout(300)
    assert len(actions(window.store, person="eva")) == 1  # the login
    spoken = [seq for seq in range(6, 30) if reviews_of(window.store, seq)]
    assert spoken == [first]


def test_looking_closely_by_keyboard(window: Window) -> None:
    window.sign_in("eva")
    window.part()
    tab = window.tab
    layers = "Object.fromEntries(Object.entries(layers).map(([name, item]) => [name, item.getOpacity()]))"
    assert tab.evaluate(layers) == {"heat": 1, "saliency": 0}
    for _ in range(4):
        tab.keyboard.press("ArrowRight")
    assert tab.evaluate(layers) == {"heat": 0, "saliency": 1}
    for _ in range(8):
        tab.keyboard.press("ArrowLeft")
    assert tab.evaluate(layers) == {"heat": 0, "saliency": 0}
    assert tab.locator(".marks .contour").count() > 0
    tab.keyboard.press("c")
    assert tab.locator(".marks .contour").count() == 0
    before = tab.evaluate("viewer.viewport.getZoom()")
    tab.keyboard.press("+")
    assert tab.evaluate("viewer.viewport.getZoom()") > before
    tab.keyboard.press("l")
    # A picture is in it: one colour takes 1,500 characters at most, a texture some 5,000.
    tab.wait_for_function("() => !loupe.hidden && whole?.complete && loupe.toDataURL().length > 2500")
    left = tab.evaluate("loupe.style.left")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("loupe.style.left") != left
    tab.keyboard.press("l")
    tab.keyboard.press("s")
    tab.wait_for_selector("#beside:not([hidden])")
    tab.wait_for_function("() => other?.isOpen()")
    assert "passed: P-" in tab.inner_text("#other-caption")
    tab.keyboard.press("?")
    assert tab.locator("dialog[open]").count() == 1
    tab.keyboard.press("Escape")


def test_drawing_by_keyboard_and_by_hand(window: Window) -> None:
    window.sign_in("eva")
    seq = window.part()
    tab = window.tab
    tab.keyboard.press("m")
    tab.keyboard.press("2")
    for key in ("Space", "Shift+ArrowRight", "Space", "Shift+ArrowDown", "Space", "Enter"):
        tab.keyboard.press(key)
    tab.keyboard.press("k")
    tab.keyboard.press("z")
    tab.keyboard.press("1")
    box = tab.locator(".marks").bounding_box()
    x, y = box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 40, y + 10, steps=4)
    tab.mouse.up()
    tab.keyboard.press("m")
    assert "What you drew is kept" in tab.inner_text("#panel")
    window.press("1")
    review = said(window.store, seq)
    assert review.mask is not None
    assert len(review.regions) == 2
    import cv2
    import numpy as np

    mask = cv2.imdecode(np.frombuffer(window.store.files.read(review.mask.sha256), np.uint8), cv2.IMREAD_UNCHANGED)
    height, width = mask.shape
    assert mask[round(height * 0.5) + 4, round(width * 0.5) + 14] == 255
    assert mask[round(height * 0.2), round(width * 0.2) + 2] == 255


def test_blind_mode_by_keyboard(window: Window) -> None:
    window.sign_in("eva")
    window.part()
    window.tab.keyboard.press("b")
    # The first part's overlay was on the screen before, and the page says so.
    window.tab.wait_for_selector("text=will not count as blind")
    window.part()
    seq = window.press("x")
    assert "Your verdict first" in window.tab.inner_text("#panel")
    assert "heat" not in window.tab.evaluate("Object.keys(layers).join()")
    window.tab.keyboard.press("g")
    window.tab.wait_for_selector("text=Change your mind")
    assert said(window.store, seq).blind
    window.part()
    assert window.tab.evaluate("Object.keys(layers).join()") == "heat,saliency"
    assert window.press("x") != seq


def test_the_wall_follows_the_line(window: Window) -> None:
    window.sign_in("vera")
    window.go("/wall")
    window.tab.wait_for_selector(".camera.pass, .camera.reject")
    window.tab.wait_for_function("() => document.getElementById('link').textContent === 'live'")
    nodes = window.tab.evaluate_handle("[...document.querySelectorAll('.camera')]")
    last = 0
    for index in range(40):
        verdict = Verdict.REJECT if index % 3 else Verdict.REVIEW
        last = window.store.append(
            [answer(verdict, frame=None, camera=("left", "third")[index % 2], request_id=f"w{index}")]
        )[0]
    window.tab.wait_for_function("(last) => window.wall.head === last", arg=last)
    assert window.tab.evaluate("window.wall.results") == 40
    shown = {
        name: int(window.tab.inner_text(f'[data-total="{name}"]'))
        for name in ("pass", "reject", "review", "none", "all")
    }
    assert shown["all"] == 24 + 40 == shown["pass"] + shown["reject"] + shown["review"] + shown["none"]
    # Cards are changed in place: one that is made anew flickers.
    assert window.tab.evaluate("(nodes) => nodes.every((node) => node.isConnected)", nodes)
    assert window.tab.locator(".camera h2").all_inner_texts() == ["left", "right", "third"]


def test_the_wall_says_that_it_is_cut_off(browser: Any, page: Page) -> None:
    window = Window(browser, page)
    window.sign_in("vera")
    window.go("/wall")
    window.tab.wait_for_function("() => document.getElementById('link').textContent === 'live'")
    window.context.set_offline(True)
    window.tab.evaluate("source.dispatchEvent(new Event('error'))")
    window.tab.wait_for_selector("text=what you see is old")
    window.context.close()


def test_searching_the_history(window: Window) -> None:
    fill(window.store, 40, seed=3)
    window.sign_in("vera")
    window.go("/history")
    assert window.tab.locator(".result").count() == 48
    window.tab.locator(".more").press("Enter")
    window.tab.wait_for_function("() => document.querySelectorAll('.result').length === 64")
    window.tab.locator("[name=part]").fill("P-3001")
    window.tab.wait_for_function("() => document.querySelectorAll('.result').length === 10")
    window.tab.locator("[name=verdict]").select_option("REJECT")
    # A result that is pressed while the list is being replaced opens nothing, so the list has to have settled.
    window.tab.wait_for_function(
        "() => document.querySelectorAll('.result').length < 10 && document.querySelector('.result')"
        " && !document.querySelector('[class*=htmx-]')"
    )
    window.tab.wait_for_load_state("networkidle")
    window.tab.locator(".result").first.press("Enter")
    window.tab.wait_for_url("**/part/*")
    window.part()
    assert "Trail" in window.tab.inner_text("#panel")
    assert window.tab.locator(".choice").count() == 0


def test_the_report_prints_to_pdf(window: Window, tmp_path: Path) -> None:
    window.sign_in("vera")
    window.go("/report")
    data = window.tab.pdf(prefer_css_page_size=True)
    (tmp_path / "report.pdf").write_bytes(data)
    assert data.startswith(b"%PDF")
    window.tab.emulate_media(media="print")
    assert not window.tab.locator("header.top").is_visible()
    assert not window.tab.locator("form.search").is_visible()
    assert window.tab.locator(".report .chart").is_visible()


def test_taking_feedback_out_by_keyboard(window: Window) -> None:
    window.sign_in("erik")
    window.part()
    window.press("a")
    window.go("/feedback")
    with window.tab.expect_download() as download:
        window.tab.locator("#export button").press("Enter")
    assert download.value.suggested_filename.endswith(".zip")
    assert len(actions(window.store, action="export-feedback")) == 1


def test_a_refused_verdict_is_told_and_the_part_stays(browser: Any, page: Page) -> None:
    window = Window(browser, page)
    window.sign_in("eva")
    seq = window.part()
    window.tab.evaluate(
        "const note = document.getElementById('note'); note.removeAttribute('maxlength'); note.value = 'x'.repeat(2001)"
    )
    window.tab.keyboard.press("g")
    window.tab.wait_for_selector("#toast:has-text('at most 2000')")
    assert window.part() == seq
    assert reviews_of(page.store, seq) == []
    window.context.close()


@pytest.mark.parametrize("window", [{"viewport": DESK}, {"viewport": TABLET}], indirect=True, ids=["desk", "tablet"])
def test_nothing_sticks_out_and_axe_finds_nothing(window: Window) -> None:
    window.go("/sign-in")
    problems = [f"sign-in {one}" for one in window.axe()]
    window.sign_in("ada")
    for scheme in ("light", "dark"):
        window.tab.emulate_media(color_scheme=scheme)
        for address in ("/review", "/part/7", "/wall", "/history", "/report", "/feedback", "/models", "/accounts"):
            window.go(address)
            if address in ("/review", "/part/7"):
                window.part()
            if address == "/wall":
                window.tab.wait_for_selector(".camera")
            problems += [f"{scheme} {address} {one}" for one in window.axe()]
            wide = window.tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{address} is {wide} px too wide"
    assert problems == []


def test_everything_at_the_queue_fits_a_desk_without_scrolling(window: Window) -> None:
    window.sign_in("eva")
    window.part()
    for name in (".choice >> nth=-1", "[data-key=z]", "[data-key=x]", "#note", "#blend", "#contours"):
        box = window.tab.locator(name).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= DESK["height"], name

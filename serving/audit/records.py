"""What is recorded: answers of the server, reviews and actions of people, and the removal of files.

A record says what somebody knows when it is appended. ``serving.audit.append`` adds the rest: its number, its time,
and of a review what it replaces and whether it disagrees with the model.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from vision.errors import SettingsError
from vision.types import Verdict

_LONGEST_NAME = 200
_ATOMS = frozenset({str, int, float, bool, type(None)})
_FIELDS: dict[type[Any], tuple[str, ...]] = {}


class Kind(enum.StrEnum):
    """Of a record; stands in its body as ``kind``."""

    ANSWER = "answer"
    REVIEW = "review"
    ACTION = "action"
    PRUNE = "prune"


class PersonVerdict(enum.StrEnum):
    """What a person says about a part. ``WITHDRAWN`` takes the review before it back: the part waits for one again."""

    GOOD = "good"
    DEFECT = "defect"
    UNSURE = "unsure"
    WITHDRAWN = "withdrawn"


class Disagreement(enum.StrEnum):
    """How a person's verdict stands to the model's.

    ``OVERKILL``: rejected, and good. ``ESCAPE``: passed, and defective. ``CLASS``: a defect of another class. A model
    that asked for a review, or gave no verdict, cannot be disagreed with.
    """

    NONE = ""
    OVERKILL = "overkill"
    ESCAPE = "escape"
    CLASS = "class"


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file of the store, named by its content. ``sha256`` in hex; ``size`` in bytes; ``media``: MIME type."""

    sha256: str
    size: int
    media: str

    @classmethod
    def of(cls, data: bytes | memoryview, media: str) -> FileRef:
        return cls(hashlib.sha256(data).hexdigest(), len(data), media)


@dataclass(frozen=True, slots=True)
class RawLayout:
    """How the bytes of an unencoded frame lie; ``pixel_format`` is a name of ``vision.preprocess.PixelFormat``."""

    width: int
    height: int
    stride: int
    pixel_format: str


@dataclass(frozen=True, slots=True)
class MapPlane:
    """One map on a sheet (see ``serving.audit.maps``): value = pixel * scale + offset.

    ``name``: ``anomaly``, or the class whose saliency it is. Its top left pixel is (0, ``top``).
    """

    name: str
    top: int
    height: int
    width: int
    scale: float
    offset: float


@dataclass(frozen=True, slots=True)
class ModelUsed:
    """Which model answered, on what. Digests are SHA-256 in hex. ``point``: the thresholds that held, by name.

    ``fast_decode``: large JPEGs were decoded at a reduced scale, which changes scores.
    """

    name: str
    version: str
    bundle_digest: str
    model_digest: str
    provider: str
    precision: str
    fallback: bool
    point: Mapping[str, Any]
    fast_decode: bool = False


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Of one class; ``probability`` is None where none is calibrated. None also stands for what is no number."""

    name: str
    score: float | None
    logit: float | None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class RegionFigures:
    """A defect region in frame pixels. ``box``: x, y, width, height. ``outline``: x0, y0, x1, y1, ..., simplified."""

    label: str
    score: float
    box: tuple[int, int, int, int]
    area_px: int
    outline: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server said about one frame. Times ``_ns`` are ns since 1970 (UTC).

    ``frame`` is None for frames that were refused before anybody looked at them; ``layout`` only of unencoded ones.
    ``error``: name of the ErrorCode where the answer was an error, its verdict then being NO_VERDICT. ``sampled``: a
    passed part that a person is to check, drawn at random with ``sample_rate``. ``versions``: of the programs.
    """

    kind: ClassVar[Kind] = Kind.ANSWER
    request_id: str
    verdict: Verdict
    reason: str
    received_ns: int
    captured_ns: int | None = None
    part: str = ""
    lot: str = ""
    camera: str = ""
    station: str = ""
    error: str = ""
    frame: FileRef | None = None
    layout: RawLayout | None = None
    frame_width: int = 0
    frame_height: int = 0
    predicted: str = ""
    anomaly_score: float | None = None
    calibrated_anomaly_score: float | None = None
    classes: tuple[ClassFigures, ...] = ()
    class_hits: tuple[str, ...] = ()
    unknown_defect: bool = False
    regions: tuple[RegionFigures, ...] = ()
    maps: FileRef | None = None
    planes: tuple[MapPlane, ...] = ()
    drift: str = ""
    model: ModelUsed | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 0
    sampled: bool = False
    sample_rate: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[FileRef, ...]:
        return tuple(ref for ref in (self.frame, self.maps) if ref is not None)

    def body(self) -> dict[str, Any]:
        values: dict[str, Any] = _plain(self)
        values["verdict"] = self.verdict.name
        for name in ("request_id", "part", "lot", "camera", "station"):
            values[name] = short(values[name])
        return values

    @classmethod
    def from_body(cls, values: Mapping[str, Any]) -> Answer:
        """The inverse of ``body``."""
        known = {name: values[name] for name in _names(cls)}
        model, layout = values["model"], values["layout"]
        known |= {
            "verdict": Verdict[values["verdict"]],
            "frame": _ref(values["frame"]),
            "maps": _ref(values["maps"]),
            "layout": None if layout is None else RawLayout(**layout),
            "model": None if model is None else ModelUsed(**model),
            "classes": tuple(ClassFigures(**one) for one in values["classes"]),
            "class_hits": tuple(values["class_hits"]),
            "planes": tuple(MapPlane(**one) for one in values["planes"]),
            "regions": tuple(
                RegionFigures(**{**one, "box": tuple(one["box"]), "outline": tuple(one["outline"])})
                for one in values["regions"]
            ),
        }
        return cls(**known)


@dataclass(frozen=True, slots=True)
class DrawnRegion:
    """An area that a person drew, in frame pixels: a polygon x0, y0, x1, y1, ... of a defect class (or empty)."""

    label: str
    points: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What a person says about the part of one answer.

    ``answer``: number of the answer's record. ``label``: defect class, for a defect; empty where none was named.
    ``regions`` and ``mask`` (a PNG of the frame's size, 255 where it is defective): what was drawn. ``blind``: said
    before the model's opinion was shown. ``seconds``: how long the person looked.
    """

    kind: ClassVar[Kind] = Kind.REVIEW
    answer: int
    person: str
    verdict: PersonVerdict
    label: str = ""
    note: str = ""
    regions: tuple[DrawnRegion, ...] = ()
    mask: FileRef | None = None
    blind: bool = False
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.person:
            raise SettingsError("a review needs the name of the person who gives it")
        if self.label and self.verdict is not PersonVerdict.DEFECT:
            raise SettingsError(f"only a defect has a class; got {self.label!r} for a part that is {self.verdict}")

    @property
    def files(self) -> tuple[FileRef, ...]:
        return () if self.mask is None else (self.mask,)

    def body(self) -> dict[str, Any]:
        return {**_plain(self), "person": short(self.person), "label": short(self.label)}

    @classmethod
    def from_body(cls, values: Mapping[str, Any]) -> Review:
        known = {name: values[name] for name in _names(cls)}
        known |= {
            "verdict": PersonVerdict(values["verdict"]),
            "regions": tuple(DrawnRegion(one["label"], tuple(one["points"])) for one in values["regions"]),
            "mask": _ref(values["mask"]),
        }
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something that a person (or the server: ``person`` is then ``"server"``) did.

    ``action``: a word such as ``start``, ``stop``, ``promote``, ``rollback``, ``override``, ``login``, ``export``.
    ``subject``: what it was done to. ``details``: whatever else is worth keeping; text, numbers, lists and dicts.
    ``attached``: files that belong to it.
    """

    kind: ClassVar[Kind] = Kind.ACTION
    action: str
    person: str
    subject: str = ""
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    attached: tuple[FileRef, ...] = ()

    def __post_init__(self) -> None:
        if not self.action or not self.person:
            raise SettingsError(f"an action needs a name and who did it; got {self.action!r} by {self.person!r}")

    @property
    def files(self) -> tuple[FileRef, ...]:
        return self.attached

    def body(self) -> dict[str, Any]:
        cut = {name: short(getattr(self, name)) for name in ("action", "person", "subject")}
        attached = [_plain(ref) for ref in self.attached]
        return {**cut, "reason": self.reason, "details": dict(self.details), "attached": attached}

    @classmethod
    def from_body(cls, values: Mapping[str, Any]) -> Action:
        known = {name: values[name] for name in _names(cls)}
        return cls(**{**known, "attached": tuple(_ref(one) for one in values["attached"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Files were removed, as a rule in words says. ``removed``: their SHA-256 in hex; ``size``: the bytes they took."""

    kind: ClassVar[Kind] = Kind.PRUNE
    rule: str
    person: str
    removed: tuple[str, ...]
    size: int

    @property
    def files(self) -> tuple[FileRef, ...]:
        return ()

    def body(self) -> dict[str, Any]:
        values: dict[str, Any] = _plain(self)
        return values

    @classmethod
    def from_body(cls, values: Mapping[str, Any]) -> Prune:
        return cls(rule=values["rule"], person=values["person"], removed=tuple(values["removed"]), size=values["size"])


Record = Answer | Review | Action | Prune
KINDS: dict[Kind, type[Answer] | type[Review] | type[Action] | type[Prune]] = {
    kind.kind: kind for kind in (Answer, Review, Action, Prune)
}


def disagreement(verdict: Verdict, predicted: str, said: PersonVerdict, label: str) -> Disagreement:
    """How what a person said stands to the model's verdict and class."""
    if verdict is Verdict.REJECT and said is PersonVerdict.GOOD:
        return Disagreement.OVERKILL
    if verdict is Verdict.PASS and said is PersonVerdict.DEFECT:
        return Disagreement.ESCAPE
    if verdict is Verdict.REJECT and said is PersonVerdict.DEFECT and label and label != predicted:
        return Disagreement.CLASS
    return Disagreement.NONE


def short(name: str) -> str:
    """A name as it is kept: callers may send megabytes. A cut one ends with a part of its digest and stays unique."""
    name = name.replace("\0", "\ufffd")
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 17]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _ref(values: Mapping[str, Any] | None) -> FileRef | None:
    return None if values is None else FileRef(**values)


def _names(kind: type[Any]) -> tuple[str, ...]:
    names = _FIELDS.get(kind)
    if names is None:
        names = _FIELDS[kind] = tuple(one.name for one in fields(kind))
    return names


def _plain(value: Any) -> Any:
    """As ``dataclasses.asdict``, which takes ten times as long because it copies every number and text."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is tuple:
        return [_plain(one) for one in value]
    if hasattr(kind, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in _names(kind)}
    return value

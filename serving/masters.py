"""A check with master parts: known-good and known-bad ones are inspected anew and compared with the last time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serving.fleet import Fleet
from serving.messages import EncodedImage, FrameRequest, ModelInfo, Outputs
from serving.stations import MasterResult, StationCheck, Stations
from vision.errors import DefectLensError, SettingsError
from vision.types import Inspection, Verdict

# A master part must keep this share of the distance to its threshold that it had before. Half: far more than a part
# moves from shot to shot, and still on the right side.
_KEPT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class MasterPart:
    """Today's picture of a part that is known to be good, or not to be."""

    name: str
    good: bool
    encoded: bytes


async def check_station(
    fleet: Fleet, stations: Stations, station: str, parts: Sequence[MasterPart], *, by: str = "", model: str = ""
) -> StationCheck:
    """Inspect the parts, compare, and stop or release the station.

    Raises:
        SettingsError: no such station, no parts, or not both kinds of them; two parts have one name.
        WrongModelError: no such model.
    """
    stations.status(station)  # there must be one
    if {part.good for part in parts} != {True, False}:
        raise SettingsError(
            "a check needs known-good and known-bad master parts; put them into good/ and other folders"
        )
    if len({part.name for part in parts}) != len(parts):
        raise SettingsError("two master parts have the same name; each needs its own, the same one at every check")
    served = fleet.choose(model)
    first, last = stations.margins(station, served.info.model.bundle_digest)
    results = []
    for part in parts:
        request = FrameRequest(EncodedImage(part.encoded), part_id=part.name, outputs=Outputs(regions=False))
        try:
            answer = await served.pipeline.inspect(request, camera=f"masters of {station}", watched=False)
        except DefectLensError as error:
            results.append(MasterResult(part.name, part.good, Verdict.NO_VERDICT.name, None, None, problem=str(error)))
            continue
        results.append(_judge(part, answer.inspection, served.info, first.get(part.name), last.get(part.name)))
    missing = sorted(set(last) - {part.name for part in parts})
    problems = [f"{result.name}: {result.problem}" for result in results if result.problem]
    problems += [f"{name}: was checked the last time and is missing now" for name in missing]
    identity = served.info.model
    check = StationCheck(
        station, by, identity.name, identity.bundle_digest, tuple(results), tuple(problems), bool(last)
    )
    stations.record(check)
    return check


def _judge(
    part: MasterPart, inspection: Inspection, info: ModelInfo, first: float | None, last: float | None
) -> MasterResult:
    # A review is no pass: what a good part must stay below is what a defective one must reach.
    score, threshold = inspection.anomaly_score, info.operating_point.review_threshold
    margin = None
    if score is not None and threshold is not None:
        margin = threshold - score if part.good else score - threshold
    result = MasterResult(part.name, part.good, inspection.verdict.name, score, margin, last, first)
    is_right = (inspection.verdict is Verdict.PASS) == part.good and inspection.verdict is not Verdict.NO_VERDICT
    if not is_right:
        kind = "good" if part.good else "defective"
        return replace(result, problem=f"is known to be {kind}, and got {result.verdict} ({inspection.reason})")
    for before, when in ((last, "the last time"), (first, "the first time")):
        if margin is not None and before is not None and margin < _KEPT_SHARE * before:
            lost = f"its score was {before:.3g} from the threshold {when} and is only {margin:.3g} from it now"
            return replace(result, problem=f"is still judged rightly, but {lost}")
    return result

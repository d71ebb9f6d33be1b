"""The model room: what judges the parts, how good it is, and what could take over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response

from protos.inspection.v1 import admin_pb2 as pb
from protos.inspection.v1 import inspection_pb2 as frames_pb
from serving.admin_client import AdminClient
from serving.audit import AnswerRow, Role, Search, actions, search
from serving.client import InspectionClient
from serving.inspector.site import Acting, Person, Site, looking, site_of
from serving.inspector.whatif import WhatIf, what_if
from serving.messages import ModelInfo
from vision.errors import DefectLensError, SettingsError

router = APIRouter(prefix="/models")
Looking = Annotated[Person, Depends(looking)]
Engineering = Annotated[Person, Depends(Acting(Role.ENGINEER))]
_TIMEOUT_S = 3.0
_SHOWN = 24
_CHANGES: dict[str, Callable[..., pb.ModelState]] = {
    "promote": AdminClient.promote,
    "rollback": AdminClient.rollback,
    "withdraw": AdminClient.withdraw,
}
_ASKED = "-asked"
_DONE = {
    "promote": "The candidate has taken over.",
    "rollback": "The version before has taken over again.",
    "withdraw": "The candidate is gone.",
}


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the server. ``state`` is None where no admin address is known; ``gallery``: frames about which the
    candidate says something else, with what it says.
    """

    info: ModelInfo
    state: pb.ModelState | None
    figures: dict[str, Any]
    parity: dict[str, Any]
    origin: dict[str, Any]
    what_if: WhatIf | None
    gallery: list[tuple[AnswerRow, str, str]]


@router.get("")
def models(request: Request, _: Looking) -> Response:
    """All models of the server."""
    return site_of(request).render(request, "models.html", **_room(site_of(request)), done="")


@router.post("/{name}/{change}")
def change(
    request: Request, person: Engineering, name: str, change: str, reason: Annotated[str, Form()] = ""
) -> Response:
    """Promote, roll back or withdraw, with a reason; what was asked and what became of it are recorded."""
    site = site_of(request)
    if change not in _CHANGES:
        raise SettingsError(f"a model can be {', '.join(_CHANGES)}; got {change!r}")
    if not reason.strip():
        raise SettingsError("Say why: the reason is kept with the change.")
    if not site.settings.admin:
        raise SettingsError("Start the page with --admin ADDR to change models from here.")
    # The server writes its own record of the change where it has a store; this one says what was asked on the page, and
    # is there first, so that a change that nobody saw the end of has a name to it.
    action, reason = f"{change}{_ASKED}", reason.strip()
    site.record(action, person, name, reason, stage="asked")
    try:
        with AdminClient(site.settings.admin) as admin:
            state = _CHANGES[change](admin, name, by=person.name, reason=reason)
    except DefectLensError as error:
        site.record(action, person, name, reason, stage="failed", error=str(error))
        raise
    serving = {"version": state.serving.version, "bundle_digest": state.serving.bundle_digest}
    site.record(action, person, name, reason, stage="done", serving=serving)
    return site.render(request, "models_body.html", **_room(site), done=f"{name}: {_DONE[change]}")


def _room(site: Site) -> dict[str, Any]:
    values: dict[str, Any] = {"models": [], "refused": [], "problem": "", "can_change": bool(site.settings.admin)}
    values["changes"] = [
        one for change in _CHANGES for one in actions(site.store, action=f"{change}{_ASKED}", limit=20)
    ]
    values["changes"].sort(key=lambda one: -one.seq)
    if not site.settings.server:
        return values | {"problem": "Start the page with --server ADDR to see the models of a server."}
    try:
        states, values["refused"] = _states(site)
        with InspectionClient(site.settings.server, timeout_s=_TIMEOUT_S) as client:
            infos = [client.get_model(name) for name in (list(states) or [""])]
        values["models"] = [_model(site, info, states.get(info.model.name)) for info in infos]
    except DefectLensError as error:
        values["problem"] = str(error)
    return values


def _states(site: Site) -> tuple[dict[str, pb.ModelState], list[pb.RefusedBundle]]:
    if not site.settings.admin:
        return {}, []
    with AdminClient(site.settings.admin) as admin:
        reply = admin.models()
    return {state.name: state for state in reply.models}, list(reply.refused)


def _model(site: Site, info: ModelInfo, state: pb.ModelState | None) -> Model:
    return Model(
        info=info,
        state=state,
        figures=_flat(info.metrics_json),
        parity=_flat(info.parity_json),
        origin=_flat(info.provenance_json),
        what_if=what_if(site.store, info.operating_point, info.model.name, info.model.bundle_digest),
        gallery=_gallery(site, state),
    )


def _gallery(site: Site, state: pb.ModelState | None) -> list[tuple[AnswerRow, str, str]]:
    if state is None or not state.HasField("candidate"):
        return []
    with AdminClient(site.settings.admin) as admin:
        found = admin.disagreements(state.name)
    shown = []
    for one in reversed(found[-_SHOWN:]):
        rows = search(site.store, Search(request_id=one.request_id), limit=1).answers
        if rows and rows[0].frame:
            verdict = frames_pb.Verdict.Name(one.candidate.verdict)
            shown.append((rows[0], verdict, one.candidate.predicted))
    return shown


def _flat(text: str, prefix: str = "") -> dict[str, Any]:
    """A JSON object as lines: names of inner objects go before those of their entries."""
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name} {key}".strip())
        elif not isinstance(value, list) or len(value) <= 8:
            found[name.replace("_", " ")] = value

    walk(json.loads(text or "{}"), prefix)
    return found

"""Taking what people said out as training data."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from serving.audit import Reviewed, Role, reviewed
from serving.inspector.feedback import export
from serving.inspector.site import Acting, Person, Seeing, site_of

router = APIRouter(prefix="/feedback")
Engineering = Annotated[Person, Depends(Acting(Role.ENGINEER))]
Looking = Annotated[Person, Depends(Seeing(Role.INSPECTOR))]


@router.get("")
def feedback(request: Request, _: Looking) -> Response:
    """What there is, and the button."""
    found: Reviewed = reviewed(site_of(request).store)
    return site_of(request).render(request, "feedback.html", reviewed=found)


@router.post("")
def take_out(request: Request, person: Engineering, overruled: Annotated[bool, Form()] = False) -> Response:
    """A ZIP of the folder; that somebody took it is recorded."""
    site = site_of(request)
    folder = Path(tempfile.mkdtemp(prefix="defectlens-feedback-"))
    try:
        done = export(site.store, folder / "parts", overruled_alone=overruled)
        archive = shutil.make_archive(str(folder / "feedback"), "zip", folder / "parts")
        site.record(
            "export-feedback", person, images=done.by_label.total(), masks=done.masks, overruled_alone=overruled
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    name = f"feedback-{time.strftime('%Y%m%d-%H%M%S')}.zip"
    cleaning = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(archive, filename=name, media_type="application/zip", background=cleaning)

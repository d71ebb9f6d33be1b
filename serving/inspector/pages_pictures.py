"""Frames, maps and thumbnails."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from serving.inspector.site import Person, keep_forever, looking, site_of

router = APIRouter(prefix="/pictures/{seq}")
Looking = Annotated[Person, Depends(looking)]


@router.get("/tile/{level}/{column}_{row}")
def tile(request: Request, _: Looking, seq: int, level: int, column: int, row: int) -> Response:
    """One tile of deep zoom."""
    data, media = site_of(request).pictures.tile(seq, level, column, row)
    return keep_forever(Response(data, media_type=media))


@router.get("/whole.png")
def whole(request: Request, _: Looking, seq: int) -> Response:
    """The frame at full size."""
    return keep_forever(Response(site_of(request).pictures.whole(seq), media_type="image/png"))


@router.get("/thumbnail.jpg")
def thumbnail(request: Request, _: Looking, seq: int) -> Response:
    return keep_forever(Response(site_of(request).pictures.thumbnail(seq), media_type="image/jpeg"))


@router.get("/heat.png")
def heat(request: Request, _: Looking, seq: int, plane: str) -> Response:
    """A map, to be laid over the frame. ``plane``: ``anomaly``, or the class whose saliency it is."""
    return keep_forever(Response(site_of(request).pictures.heat(seq, plane), media_type="image/png"))

"""The inspector's page: what the server said about parts, and what people say about it.

``app`` puts it together, ``site`` is what all pages share, ``pages_*`` are the pages, ``pictures`` draws frames and
maps, ``feed`` follows the store for the wall. Nothing here judges a part: pages read the audit store and add records.

Names are loaded when they are first used: ``defectlens inspector --help`` needs none of the libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.inspector.app import create_app
    from serving.inspector.settings import PageSettings

__all__ = ["PageSettings", "create_app"]

_ELSEWHERE = {"PageSettings": "serving.inspector.settings", "create_app": "serving.inspector.app"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE[name]), name)

"""The inspector's page: what the server said about parts, and what people say about it.

``app`` puts it together, ``site`` is what all pages share, ``pages_*`` are the pages, ``pictures`` draws frames and
maps, ``feed`` follows the store for the wall. Nothing here judges a part: pages read the audit store and add records.
"""

from serving.inspector.app import create_app
from serving.inspector.settings import PageSettings

__all__ = ["PageSettings", "create_app"]

"""What the page needs beyond the base installation; asked without loading any of it."""

from __future__ import annotations

import importlib.util

from vision.errors import SettingsError

_PAGE = ("fastapi", "uvicorn", "argon2", "multipart", "jinja2")


def need_packages(names: tuple[str, ...] = _PAGE, extra: str = "inspector") -> None:
    """Refuse to go on without them.

    Raises:
        SettingsError: names what is missing, and the extra that brings it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"the page needs {', '.join(missing)}; install what it needs with `pip install 'defectlens[{extra}]'`"
        )

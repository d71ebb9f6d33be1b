"""``opencv-python`` and the headless build that albumentations requires write into one folder, ``cv2``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import cv2
import pytest


def test_both_builds_have_one_version() -> None:
    try:
        headless = version("opencv-python-headless")
    except PackageNotFoundError:
        pytest.skip("the serving installation has one build only")
    assert version("opencv-python") == headless


def test_cv2_is_the_version_that_is_installed() -> None:
    assert version("opencv-python").startswith(cv2.__version__)

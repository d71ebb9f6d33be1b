"""Settings that must be there before numeric libraries start their thread pools, and before any property is defined."""

from __future__ import annotations

import os

from hypothesis import settings

# The models in tests are tiny: waking a second thread costs more than it computes, and tests share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A loaded machine must not fail a property that holds, and CI must try the same examples every time.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

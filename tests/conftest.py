"""Settings that must be there before numeric libraries start their thread pools."""

from __future__ import annotations

import os

# The models in tests are tiny: waking a second thread costs more than it computes, and tests share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

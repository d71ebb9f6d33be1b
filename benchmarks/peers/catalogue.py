"""Which of anomalib's models are compared, and what each of them is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OURS = "defectlens"


@dataclass(frozen=True)
class Peer:
    """``model`` is anomalib's class, ``options`` what it gets beside anomalib's defaults; ``layer1`` to ``layer4``
    stand for the backbone's features at strides 4 to 32. ``epochs`` is 1 where each frame is looked at once.
    """

    title: str
    model: str
    epochs: int
    options: dict[str, Any] = field(default_factory=dict)


PEERS = {
    # Features and layers as for ResNet-18, anomalib's default: 100 channels of strides 4, 8 and 16.
    "padim": Peer("PaDiM", "Padim", 1, {"layers": ["layer1", "layer2", "layer3"], "n_features": 100}),
    # The default keeps 10 % of the patches. The greedy choice of them takes frames² · ratio: hours on a CPU.
    "patchcore": Peer(
        "PatchCore, coreset 0.3 %", "Patchcore", 1, {"layers": ["layer2", "layer3"], "coreset_sampling_ratio": 0.003}
    ),
    "dfm": Peer("DFM", "Dfm", 1, {"layer": "layer3"}),
    "stfpm": Peer("STFPM", "Stfpm", 12, {"layers": ["layer1", "layer2", "layer3"]}),
    "supersimplenet": Peer("SuperSimpleNet", "Supersimplenet", 8, {"layers": ["layer2", "layer3"]}),
    "cflow": Peer("CFLOW-AD", "Cflow", 1, {"layers": ["layer2", "layer3", "layer4"]}),
}

"""Which of anomalib's models are compared, and what each of them is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OURS = "defectlens"


@dataclass(frozen=True)
class Peer:
    """``model`` is anomalib's class, ``options`` what it gets beside anomalib's defaults; ``layer1`` to ``layer4``
    stand for the backbone's features at strides 4 to 32. ``epochs``: what two CPU cores do on some 750 frames of
    224x288 px in a quarter of an hour. ``published`` epochs are what the authors, or anomalib's own figures, took; None
    where nothing is trained and each frame is looked at once.
    """

    title: str
    model: str
    epochs: int
    published: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def called(self, epochs: int) -> str:
        """Its name in the table."""
        return self.title if self.published is None else f"{self.title}, {epochs} of {self.published} epochs"


PEERS = {
    # As many channels as anomalib takes of ResNet-18, its default, from the same strides.
    "padim": Peer("PaDiM", "Padim", 1, options={"layers": ["layer1", "layer2", "layer3"], "n_features": 100}),
    # anomalib keeps 10 % of the patches. Choosing them takes time by patches² · ratio: hours on a CPU.
    "patchcore": Peer(
        "PatchCore, coreset 0.3 %",
        "Patchcore",
        1,
        options={"layers": ["layer2", "layer3"], "coreset_sampling_ratio": 0.003},
    ),
    "dfm": Peer("DFM", "Dfm", 1, options={"layer": "layer3"}),
    # `input_dim` is what the layer gives of a frame of this size, and is asked of the backbone.
    "fre": Peer("FRE", "Fre", 20, 220, {"layer": "layer3", "pooling_kernel_size": 2}),
    "stfpm": Peer("STFPM", "Stfpm", 6, 100, {"layers": ["layer1", "layer2", "layer3"]}),
    "supersimplenet": Peer("SuperSimpleNet", "Supersimplenet", 3, 300, {"layers": ["layer2", "layer3"]}),
    "cflow": Peer("CFLOW-AD", "Cflow", 4, 50, {"layers": ["layer2", "layer3", "layer4"]}),
}

"""A running server seen as a predictor: lets `defectlens evaluate --server` measure what a camera would get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from serving.client import InspectionClient
from serving.messages import EncodedImage, FrameRequest, MapFormat, Outputs
from vision.bundle import Bundle
from vision.errors import WrongModelError
from vision.types import Inspection

_IN_FLIGHT = 8
# Regions are found again from nothing but the map; the overlay is the report's own.
_OUTPUTS = Outputs(anomaly_map=True, saliency="all", attention="all", class_map=True, map_format=MapFormat.FLOAT32_GRID)


class _HasPath(Protocol):
    @property
    def path(self) -> Path: ...


class RemotePredictor:
    """Sends image files through a server and gives inspections back in order.

    Args:
        address: ``host:port`` of a server that is ready or about to be.
        bundle: the bundle that the server is expected to serve; its manifest is what the report speaks of.

    Raises:
        WrongModelError: the server serves another bundle.
    """

    def __init__(self, address: str, bundle: Bundle) -> None:
        self.manifest = bundle.manifest
        self.digest = bundle.digest
        self._client = InspectionClient(address)
        self._client.wait_until_ready()
        served = self._client.get_model()
        model = served.model
        if model.bundle_digest != bundle.digest:
            raise WrongModelError(
                f"the server at {address} serves {model.name} {model.version} (digest {model.bundle_digest[:12]}), not "
                f"{bundle.path} (digest {bundle.digest[:12]}); start it with that bundle"
            )
        self.provider = (
            served.provider if served.precision in ("", "fp32") else f"{served.provider} in {served.precision}"
        )

    def predict(self, samples: Sequence[_HasPath]) -> Iterator[Inspection]:
        """One inspection for each sample, in their order, maps on the model's grid."""
        waiting: dict[str, Inspection] = {}  # answers may come out of order
        following = 0
        requests = (
            FrameRequest(image=EncodedImage(sample.path.read_bytes()), request_id=str(index), outputs=_OUTPUTS)
            for index, sample in enumerate(samples)
        )
        for answer in self._client.inspect_stream(requests, in_flight=_IN_FLIGHT):
            waiting[answer.request_id] = answer.result().inspection
            while str(following) in waiting:
                yield waiting.pop(str(following))
                following += 1

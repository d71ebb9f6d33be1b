"""The server's side of shared memory: what a careless or hostile caller can name, and how often pixels are copied."""

from __future__ import annotations

import fcntl
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from serving import FrameRequest, RawImage
from serving.shared_frames import ALIGNMENT, MAX_REGIONS, SharedFrames
from serving.stages import prepare
from vision.bundle import load_bundle
from vision.errors import SharedMemoryError
from vision.preprocess import PixelFormat, decode_raw

PROOF = b"p" * 32
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def mappings(name: str = "guest") -> int:
    """How many regions of memory of that name this process maps."""
    return Path("/proc/self/maps").read_text().count(f"/memfd:{name}")


@contextmanager
def memfd(size: int = 8192, *, seals: int = SEALS, proof: bytes = PROOF) -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        os.pwrite(fd, proof, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def frames() -> SharedFrames:
    return SharedFrames(1 << 20, "here:1")


def test_only_memory_that_cannot_be_taken_away_is_mapped(frames: SharedFrames, tmp_path: Path) -> None:
    def refused(fd: int, words: str, *, size: int = 8192, proof: bytes = PROOF, pid: int | None = None) -> None:
        with pytest.raises(SharedMemoryError, match=words), frames.opened(pid or os.getpid(), fd, size, proof):
            pass
        assert not mappings()

    with memfd(seals=0) as fd:
        refused(fd, "F_SEAL_SHRINK")
    with memfd(4096) as fd:
        refused(fd, "has 4096 bytes, 8192 were said")
    with memfd(proof=bytes(32)) as fd:
        refused(fd, "does not begin with")
    with memfd(proof=b"p") as fd:
        refused(fd, "does not begin with", proof=b"p")  # a guess of one byte proves nothing
    with memfd() as fd:
        refused(fd, "at least", size=31)
        refused(fd, "1048576 at most", size=2**40)
        refused(fd, "cannot be opened", pid=2**22 + 1)
    (tmp_path / "file").write_bytes(PROOF + bytes(8192))
    with (tmp_path / "file").open("rb") as stream:
        refused(stream.fileno(), "is no memfd")
    reading, writing = os.pipe()
    refused(reading, "is no memfd")
    os.close(reading)
    os.close(writing)
    refused(1_000_000, "cannot be opened")
    assert not len(frames)
    assert not mappings()


def test_huge_pages_are_refused(frames: SharedFrames) -> None:
    """Their pages can be missing at the time they are read."""
    try:
        fd = os.memfd_create("guest", os.MFD_HUGETLB | os.MFD_ALLOW_SEALING)
    except OSError:
        pytest.skip("this kernel has no huge pages")
    try:
        os.ftruncate(fd, 1 << 21)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        with pytest.raises(SharedMemoryError, match="huge pages"), frames.opened(os.getpid(), fd, 8192, PROOF):
            pass
    finally:
        os.close(fd)


def test_a_region_that_its_owner_cannot_shrink_any_more_is_read_safely(frames: SharedFrames) -> None:
    with memfd() as fd, frames.opened(os.getpid(), fd, 8192, PROOF) as region:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        view = frames.view(region, 4096, 4096)
        assert view.readonly
        os.pwrite(fd, b"new", 4096)
        assert bytes(view[:3]) == b"new"  # the very same memory
    with pytest.raises(SharedMemoryError, match="not open on this server"):
        frames.view(region, 0, 64)
    del view
    assert not mappings()


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 8193), (8192, 1), (64, 8192), (2**63, 1), (0, 2**63), (1, 8), (ALIGNMENT - 1, 1)]
)
def test_frames_outside_the_region_are_refused(frames: SharedFrames, offset: int, size: int) -> None:
    with (
        memfd() as fd,
        frames.opened(os.getpid(), fd, 8192, PROOF) as region,
        pytest.raises(SharedMemoryError, match="does not lie"),
    ):
        frames.view(region, offset, size)


def test_regions_are_counted_together(frames: SharedFrames) -> None:
    with memfd(1 << 19) as fd, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(frames.opened(os.getpid(), fd, 1 << 19, PROOF))
        with pytest.raises(SharedMemoryError, match="1048576 of 1048576 are in use"):
            stack.enter_context(frames.opened(os.getpid(), fd, 32, PROOF))
    with memfd() as fd, ExitStack() as stack:
        for _ in range(MAX_REGIONS):
            stack.enter_context(frames.opened(os.getpid(), fd, 32, PROOF))
        with pytest.raises(SharedMemoryError, match="64 regions"):
            stack.enter_context(frames.opened(os.getpid(), fd, 32, PROOF))


@pytest.mark.parametrize("pixel_format", [PixelFormat.MONO8, PixelFormat.RGB8])
@pytest.mark.parametrize("padding", [0, 64])
def test_what_is_a_frame_already_is_read_where_it_lies(
    frames: SharedFrames, pixel_format: PixelFormat, padding: int
) -> None:
    width, height = 640, 480
    stride = width * pixel_format.bytes_per_pixel + padding
    size = stride * height
    with memfd(size) as fd, frames.opened(os.getpid(), fd, size, PROOF) as region:
        view = frames.view(region, 0, size)
        frame = decode_raw(view, width=width, height=height, stride=stride, pixel_format=pixel_format)
        assert np.shares_memory(frame, np.frombuffer(view, np.uint8))
        assert not frame.flags.writeable


@pytest.mark.parametrize("pixel_format", PixelFormat)
def test_a_20_megapixel_frame_is_copied_once_at_most(bundle: Path, pixel_format: PixelFormat) -> None:
    """Pixels that are a frame already: nothing but the model's input is made. Else one frame, by the conversion."""
    width, height = 5472, 3648
    size = width * height * pixel_format.bytes_per_pixel
    frames = SharedFrames(size, "here:1")
    manifest = load_bundle(bundle).manifest
    with memfd(size) as fd, frames.opened(os.getpid(), fd, size, PROOF) as region:
        image = RawImage(frames.view(region, 0, size), width, height, pixel_format)
        tracemalloc.start()
        try:
            prepared = prepare(FrameRequest(image), manifest, width * height)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert prepared.pixels.shape == (64, 96, 3)
    channels_made = {PixelFormat.MONO8: 0, PixelFormat.RGB8: 0, PixelFormat.MONO12: 1, PixelFormat.MONO16: 1}
    assert peak < channels_made.get(pixel_format, 3) * width * height + 1_000_000

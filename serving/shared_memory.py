"""Memory that a camera shares with a server on the same machine: frames are written into slots and never sent.

How the server looks at it is in ``shared_frames``; docs/decisions/0010-shared-memory.md says why.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import queue
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import grpc

from protos.inspection.v1 import inspection_pb2 as pb
from serving.calls import error_of
from serving.messages import SHARED_PROOF_BYTES, EncodedImage, RawImage, SharedPlace
from vision.errors import OverloadedError, SettingsError, SharedMemoryError, UnreachableError
from vision.preprocess import PixelFormat


class SharedSlot:
    """Room for one frame: the caller's until the frame is sent, and again once its answer, or its error, is there.

    In ``with memory.take() as slot`` it is handed back at the end; for streams call ``release`` after the answer.
    """

    def __init__(self, view: memoryview, place: SharedPlace, hand_back: Callable[[], None]) -> None:
        self._view = view
        self._place = place
        self._hand_back: Callable[[], None] | None = hand_back

    def __enter__(self) -> SharedSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def raw(self, width: int, height: int, pixel_format: PixelFormat, *, stride: int = 0) -> RawImage:
        """A raw frame in this slot: write into its ``pixels``, then inspect it.

        Raises:
            SettingsError: it does not fit.
        """
        view = self._part((stride or width * pixel_format.bytes_per_pixel) * height)
        return RawImage(view, width, height, pixel_format, stride, self._place)

    def encoded(self, data: bytes | memoryview) -> EncodedImage:
        """An image file, copied into this slot.

        Raises:
            SettingsError: it does not fit.
        """
        view = self._part(len(data))
        view[:] = data
        return EncodedImage(view, self._place)

    def release(self) -> None:
        """Hand the slot back, for the next ``take``; again is harmless."""
        if self._hand_back is not None:
            self._hand_back()
            self._hand_back = None

    def _part(self, size: int) -> memoryview:
        if not 0 < size <= len(self._view):
            raise SettingsError(f"a frame of {size} bytes does not fit a slot of {len(self._view)}; take larger slots")
        return self._view[:size]


class SharedMemory:
    """The slots of a synchronous client; may be shared between threads."""

    def __init__(self, memory: _Memory, region: str) -> None:
        self._memory = memory
        self._region = region
        # Numbers, not slots: a queue of slots that know the queue would keep the memory until garbage is collected.
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(memory.slots):
            self._free.put(index)

    def take(self, timeout_s: float | None = None) -> SharedSlot:
        """A free slot, once there is one.

        Raises:
            OverloadedError: none was free in time.
        """
        try:
            index = self._free.get(timeout=timeout_s)
        except queue.Empty:
            raise _none_free(timeout_s) from None
        view, offset = self._memory.slot(index)
        return SharedSlot(view, SharedPlace(self._region, offset), partial(self._free.put, index))


class AsyncSharedMemory:
    """The slots of an asynchronous client, for its event loop."""

    def __init__(self, memory: _Memory, region: str) -> None:
        self._memory = memory
        self._region = region
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for index in range(memory.slots):
            self._free.put_nowait(index)

    async def take(self, timeout_s: float | None = None) -> SharedSlot:
        """As ``SharedMemory.take``."""
        try:
            async with asyncio.timeout(timeout_s):
                index = await self._free.get()
        except TimeoutError:
            raise _none_free(timeout_s) from None
        view, offset = self._memory.slot(index)
        return SharedSlot(view, SharedPlace(self._region, offset), partial(self._free.put_nowait, index))


@contextmanager
def share(stub: Any, address: str, slots: int, slot_bytes: int, timeout_s: float) -> Iterator[SharedMemory]:
    """What ``InspectionClient.shared_memory`` does."""
    memory = _Memory(slots, slot_bytes)
    try:
        call = stub.ShareMemory(memory.request())
        # No deadline for the call, which lasts as long as the memory; its first answer has one.
        late = threading.Timer(timeout_s, call.cancel)
        late.start()
        try:
            response: pb.ShareMemoryResponse | None = next(call, None)
        except grpc.RpcError:
            raise _refused(call, address) from None
        finally:
            late.cancel()
    finally:
        memory.close_file()
    try:
        if response is None:
            raise _silent(address)
        yield SharedMemory(memory, response.region)
    finally:
        call.cancel()


@asynccontextmanager
async def share_async(
    stub: Any, address: str, slots: int, slot_bytes: int, timeout_s: float
) -> AsyncIterator[AsyncSharedMemory]:
    """What ``AsyncInspectionClient.shared_memory`` does."""
    memory = await asyncio.to_thread(_Memory, slots, slot_bytes)
    try:
        call = stub.ShareMemory(memory.request())
        try:
            async with asyncio.timeout(timeout_s):
                response: pb.ShareMemoryResponse | None = await anext(aiter(call), None)
        except TimeoutError:
            call.cancel()
            raise _silent(address) from None
        except grpc.RpcError as failure:
            raise _refused(failure, address) from None
    finally:
        memory.close_file()
    try:
        if response is None:
            raise _silent(address)
        yield AsyncSharedMemory(memory, response.region)
    finally:
        call.cancel()


class _Memory:
    """A memfd that can never shrink, mapped here; it goes with the last view of it, and with the process at the latest.

    Args:
        slots: how many.
        slot_bytes: of each; rounded up to whole pages.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        if slots < 1 or slot_bytes < 1:
            raise SettingsError(f"shared memory needs slots >= 1 and slot_bytes >= 1; got {slots} and {slot_bytes}")
        if not hasattr(os, "memfd_create"):
            raise SharedMemoryError("memory is shared through memfd_create, which only Linux has; send the frames")
        import fcntl  # only where there is memfd_create

        self.slots = slots
        self._slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._size = slots * self._slot_bytes
        self._fd = os.memfd_create("defectlens", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Had now, so that memory that is not there is an error here and not the end of the process at a write.
            os.posix_fallocate(self._fd, 0, self._size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._view = memoryview(mmap.mmap(self._fd, self._size))
        except OSError as error:
            self.close_file()
            raise SharedMemoryError(
                f"{self._size} bytes of memory cannot be had ({error.strerror}); take fewer or smaller slots"
            ) from error
        self._proof = secrets.token_bytes(SHARED_PROOF_BYTES)
        self._view[:SHARED_PROOF_BYTES] = self._proof

    def request(self) -> pb.ShareMemoryRequest:
        return pb.ShareMemoryRequest(pid=os.getpid(), fd=self._fd, size=self._size, proof=self._proof)

    def close_file(self) -> None:
        """The mapping stays; nobody else can open the memory any more."""
        os.close(self._fd)

    def slot(self, index: int) -> tuple[memoryview, int]:
        """The bytes of one slot, and where it begins."""
        start = index * self._slot_bytes
        return self._view[start : start + self._slot_bytes], start


def _none_free(timeout_s: float | None) -> OverloadedError:
    return OverloadedError(
        f"no slot of shared memory was free within {timeout_s:g} s; take more slots, or release them"
    )


def _silent(address: str) -> UnreachableError:
    return UnreachableError(f"the server at {address} did not say in time whether it takes shared memory; try again")


def _refused(call: Any, address: str) -> Exception:
    # Nobody but our own timer cancels the call before its first answer.
    return _silent(address) if call.code() is grpc.StatusCode.CANCELLED else error_of(call, address)

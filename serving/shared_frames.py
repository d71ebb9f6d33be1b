"""Memory of cameras on this machine, seen from the server: mapped once, then read where the frames lie.

The caller is not trusted. docs/decisions/0010-shared-memory.md says why it is done this way.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import mmap
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.messages import SHARED_PROOF_BYTES as PROOF_BYTES
from vision.errors import SharedMemoryError

# So that any pixel of a frame lies where its type wants to lie, and rows begin with a cache line.
ALIGNMENT = 64
MAX_REGIONS = 64
_log = logging.getLogger(__name__)


class SharedFrames:
    """The regions that are open. For one event loop; the views that it gives out may be read in any thread.

    Args:
        max_bytes: of all regions together; 0 takes none.
        where: the address of the server, for the message that says so.
    """

    def __init__(self, max_bytes: int, where: str) -> None:
        self._max_bytes = max_bytes
        self._where = where
        self._regions: dict[str, memoryview] = {}

    def __len__(self) -> int:
        return len(self._regions)

    @contextmanager
    def opened(self, pid: int, fd: int, size: int, proof: bytes) -> Iterator[str]:
        """Map a caller's memfd for the time of the ``with``; the name that frames give.

        Frames that are in work at the end keep the memory until they are done: it goes with the last view of it.

        Args:
            pid, fd: where the memfd is open.
            size: bytes to map.
            proof: the first bytes of the memory.

        Raises:
            SharedMemoryError: it is not the caller's own, could be cut short, or is too much.
        """
        self._check_room(size)
        memory = _map(pid, fd, size, proof)
        region = secrets.token_hex(16)
        self._regions[region] = memory
        _log.info("event=shared_memory_opened pid=%d bytes=%d regions=%d", pid, size, len(self))
        try:
            yield region
        finally:
            del self._regions[region], memory
            _log.info("event=shared_memory_closed pid=%d bytes=%d regions=%d", pid, size, len(self))

    def view(self, region: str, offset: int, size: int) -> memoryview:
        """The bytes of one frame, read-only, not copied.

        Raises:
            SharedMemoryError: there is no such region, or the frame is not inside it.
        """
        memory = self._regions.get(region)
        if memory is None:
            raise SharedMemoryError(
                "the frame names a region of shared memory that is not open on this server (the server was started "
                "anew, or the call that shares the memory has ended); share the memory again"
            )
        if offset % ALIGNMENT or offset + size > len(memory):
            raise SharedMemoryError(
                f"a frame of {size} bytes at offset {offset} does not lie in a region of {len(memory)} bytes at a "
                f"multiple of {ALIGNMENT}; check offset and size"
            )
        return memory[offset : offset + size]

    def _check_room(self, size: int) -> None:
        if not self._max_bytes:
            raise SharedMemoryError(
                f"the server at {self._where} takes no shared memory: it listens for other machines too, or was "
                "started with --max-shared-bytes 0; send the frames, or serve on 127.0.0.1 or a Unix socket"
            )
        if len(self) >= MAX_REGIONS:
            raise SharedMemoryError(f"{MAX_REGIONS} regions of shared memory are open already; close some")
        used = sum(map(len, self._regions.values()))
        if size < PROOF_BYTES or used + size > self._max_bytes:
            raise SharedMemoryError(
                f"a region has {PROOF_BYTES} bytes at least and {self._max_bytes - used} at most ({used} of "
                f"{self._max_bytes} are in use); got {size}; take fewer or smaller slots, or raise --max-shared-bytes"
            )


def _map(pid: int, fd: int, size: int, proof: bytes) -> memoryview:
    name = Path("/proc") / str(pid) / "fd" / str(fd)
    try:
        # A caller can name any file of any process that this one may look into. Only memfds are even opened: to open
        # a device or a pipe may do things or block.
        if not str(name.readlink()).startswith("/memfd:"):
            raise SharedMemoryError(f"file {fd} of process {pid} is no memfd; create it with memfd_create")
        opened = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise SharedMemoryError(
            f"file {fd} of process {pid} cannot be opened by the server ({error.strerror}); the server and the camera "
            "must run as the same user and see each other's processes (containers: share the PID namespace)"
        ) from error
    try:
        _check_memory(opened, size)
        # Someone else's memory, or that of a process with the same number in another container, begins otherwise.
        if not hmac.compare_digest(os.pread(opened, PROOF_BYTES, 0), proof):
            raise SharedMemoryError(
                f"the memory of process {pid} does not begin with the {PROOF_BYTES} bytes that the call holds as "
                "proof; write them there first, and see that the server's machine gives the process that number"
            )
        return memoryview(mmap.mmap(opened, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:
        raise SharedMemoryError(
            f"file {fd} of process {pid} cannot be mapped ({error}); share a plain memfd"
        ) from error
    finally:
        os.close(opened)


def _check_memory(opened: int, size: int) -> None:
    """Whether reading it can never fail: touching pages that a file has lost kills the reader with SIGBUS."""
    found = os.fstat(opened)
    if not stat.S_ISREG(found.st_mode) or not fcntl.fcntl(opened, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise SharedMemoryError("the memory could be made smaller while it is read; add the seal F_SEAL_SHRINK first")
    if found.st_size < size:
        raise SharedMemoryError(f"the memory has {found.st_size} bytes, {size} were said; make it larger first")
    if os.fstatvfs(opened).f_bsize != mmap.PAGESIZE:
        raise SharedMemoryError("the memory is of huge pages, which may be missing when they are read; use plain ones")

"""Worker processes for masks that take one core too long: a long vector, or the many masks of dropped silos.

The words are split into pieces and every process starts its counters at its piece, so the result is that of one
process, bit for bit. Processes, since threads hold the interpreter's lock while they encrypt. A worker gets its words
in shared memory, which is gone when the stream is closed, and its keys through the pool's pipe.

Nothing depends on the workers: where they cannot be had, or one dies, this process does their part.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from autoflip_secure.errors import ConfigError
from autoflip_secure.secagg.prg import WORD_BYTES, MaskStream

__all__ = ["WORKERS_VARIABLE", "WorkerMaskStream", "mask_processes", "start_workers", "use_workers"]

WORKERS_VARIABLE = "AUTOFLIP_MASK_WORKERS"
"""Environment variable: how many processes mask at once, this one included; 1 for no workers."""

# Words times masks. Two processes break even at a third of this (10 ms of work) and are 1.5 times as fast at it.
LEAST_WORK = 1 << 25
MOST_PROCESSES = 8
LEAST_PIECE_WORDS = 1 << 14
MOST_PIECE_WORDS = 1 << 18
PIECES_PER_PROCESS = 8
PIECES_LENT_PER_WORKER = 2
SHARED_FOLDER = Path("/dev/shm")

_log = logging.getLogger(__name__)


def mask_processes() -> int:
    """How many processes may mask at once, this one included.

    One a core, up to 8. A process that is itself somebody's worker has no others unless `AUTOFLIP_MASK_WORKERS` says
    so, since its siblings are at work on the other cores.

    Raises
    ------
    ConfigError
        `AUTOFLIP_MASK_WORKERS` is not a positive whole number.
    """
    if multiprocessing.current_process().daemon:
        return 1  # must not have children
    stated = os.environ.get(WORKERS_VARIABLE)
    if stated is not None:
        if not (stated.isascii() and stated.isdigit() and int(stated) > 0):
            raise ConfigError(f"{WORKERS_VARIABLE} is {stated!r}, not a positive whole number")
        return min(int(stated), MOST_PROCESSES)
    if multiprocessing.parent_process() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_PROCESSES)


def use_workers(size: int, keys: int) -> bool:
    """Whether adding `keys` masks to `size` words is work for more than this process, and there are others."""
    return size * keys >= LEAST_WORK and not _workers.lost and mask_processes() > 1


def start_workers() -> bool:
    """Start the worker processes and wait until they are ready; False where they cannot be had.

    Need not be called: a stream starts them by itself and works alone until they are there.
    """
    return _workers.ready(patient=True)


class WorkerMaskStream:
    """As `MaskStream`, with worker processes sharing the work. A context manager, as it holds shared memory.

    Parameters
    ----------
    keys, signs
        As for `MaskStream`.
    """

    def __init__(self, keys: Sequence[bytes], signs: Sequence[int]) -> None:
        self._keys, self._signs, self._next = tuple(keys), tuple(signs), 0
        self._block: _Block | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the shared memory back."""
        if self._block is not None:
            self._block.close()
            self._block = None

    def apply(self, chunk: NDArray[np.uint64]) -> None:
        """Mask the next words, `chunk` of shape (size,), in place.

        Every chunk but the last is of even size. Small chunks are slow: they are shared out one by one.
        """
        step = _piece_words(chunk.size)
        todo = deque(slice(start, min(start + step, chunk.size)) for start in range(0, chunk.size, step))
        lent: dict[Future[None], tuple[int, slice]] = {}
        own = MaskStream(self._keys, self._signs, self._next)
        while todo or lent:
            # This process works from the front and lends from the back, so a slow worker delays nobody.
            self._lend(chunk, todo, lent)
            if todo:
                own.apply(chunk[todo.popleft()])
            else:
                wait(lent, return_when=FIRST_COMPLETED)
            for future in [future for future in lent if future.done()]:
                self._take_back(chunk, future, *lent.pop(future))
        self._next += chunk.size

    def _lend(self, chunk: NDArray[np.uint64], todo: deque[slice], lent: dict[Future[None], tuple[int, slice]]) -> None:
        if len(todo) < 2 or not _workers.ready():
            return
        if self._block is None:
            self._block = _Block.reserve(PIECES_LENT_PER_WORKER * _workers.count)
            if self._block is None:
                return
        free = set(range(self._block.places)) - {place for place, _ in lent.values()}
        while free and len(todo) > 1:
            place, piece = free.pop(), todo.pop()
            words = chunk[piece]
            self._block.words(place, words.size)[:] = words
            future = _workers.submit(
                self._block.name, place, words.size, self._keys, self._signs, self._next + piece.start
            )
            if future is None:
                todo.append(piece)
                return
            lent[future] = (place, piece)

    def _take_back(self, chunk: NDArray[np.uint64], future: Future[None], place: int, piece: slice) -> None:
        assert self._block is not None
        if future.cancelled() or future.exception() is not None:
            # What the worker had was a copy; the words here are still without masks.
            _workers.lose()
            MaskStream(self._keys, self._signs, self._next + piece.start).apply(chunk[piece])
        else:
            chunk[piece] = self._block.words(place, piece.stop - piece.start)


def _piece_words(size: int) -> int:
    """Words of a piece: even; small, so that all processes end at about the same time; but a piece costs the set-up of
    every cipher, as much as some thousand words."""
    pieces = min(max(1, size // LEAST_PIECE_WORDS), PIECES_PER_PROCESS * mask_processes())
    share = -(-size // pieces)
    return min(MOST_PIECE_WORDS, max(2, share + share % 2))


class _Block:
    """Shared memory for pieces on loan. Holds words only, never a key; readable by this user's processes alone."""

    def __init__(self, memory: SharedMemory, places: int) -> None:
        self._memory, self.places, self.name = memory, places, memory.name

    @classmethod
    def reserve(cls, places: int) -> _Block | None:
        """None where the system has no room."""
        size = places * MOST_PIECE_WORDS * WORD_BYTES
        try:
            memory = SharedMemory(create=True, size=size)
        except OSError:
            return None
        try:
            _claim(memory.name, size)
        except OSError:
            memory.unlink()
            memory.close()
            return None
        return cls(memory, places)

    def words(self, place: int, count: int) -> NDArray[np.uint64]:
        return _words_of(self._memory, place, count)

    def close(self) -> None:
        self._memory.unlink()
        self._memory.close()


def _claim(name: str, size: int) -> None:
    """Shared memory is promised without looking whether there is any; touching what is not there kills a process."""
    path = SHARED_FOLDER / name
    if path.exists() and hasattr(os, "posix_fallocate"):
        file = os.open(path, os.O_RDWR)
        try:
            os.posix_fallocate(file, 0, size)
        finally:
            os.close(file)


def _words_of(memory: SharedMemory, place: int, count: int) -> NDArray[np.uint64]:
    return np.ndarray(count, np.uint64, memory.buf, place * MOST_PIECE_WORDS * WORD_BYTES)


class _Workers:
    """The worker processes of this process: started on first need, kept for its life, given up once one dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._greetings: list[Future[None]] = []
        self._owner: int | None = None
        self.count, self.lost = 0, False

    def ready(self, *, patient: bool = False) -> bool:
        if self._owner not in (None, os.getpid()):
            return False  # this process was forked off the one the workers belong to
        with self._lock:
            if self._pool is None and not self.lost:
                self._start()
            greetings = list(self._greetings)
        if patient:
            wait(greetings)
        if any(greeting.done() and greeting.exception() is not None for greeting in greetings):
            self.lose()
        return not self.lost and bool(greetings) and all(greeting.done() for greeting in greetings)

    def _start(self) -> None:
        self.count = mask_processes() - 1
        if self.count < 1:
            return
        self._owner = os.getpid()
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_begin_worker)
        try:
            self._greetings = [self._pool.submit(_greet) for _ in range(self.count)]
        except (OSError, RuntimeError):
            self.lost = True

    def submit(
        self, name: str, place: int, count: int, keys: tuple[bytes, ...], signs: tuple[int, ...], start: int
    ) -> Future[None] | None:
        """None where the workers are lost."""
        assert self._pool is not None
        try:
            return self._pool.submit(_mask_piece, name, place, count, keys, signs, start)
        except (OSError, RuntimeError):  # the pool is broken, or this process is ending
            self.lose()
            return None

    def lose(self) -> None:
        with self._lock:
            pool, self._pool, self._greetings = self._pool, None, []
            if not self.lost:
                _log.warning("a mask worker ended early; its part was done here, and so is all masking from now on")
            self.lost = True
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


_workers = _Workers()


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _greet() -> None:
    """Done once a worker has imported what it needs."""


def _mask_piece(name: str, place: int, count: int, keys: tuple[bytes, ...], signs: tuple[int, ...], start: int) -> None:
    memory = SharedMemory(name)
    try:
        MaskStream(keys, signs, start).apply(_words_of(memory, place, count))
    finally:
        memory.close()

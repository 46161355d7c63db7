"""A thread that has the next batch ready, on the device, while the current one is being used."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item", bound=tuple[Any, ...])  # of tensors, such tuples, and what needs no moving

_END = object()
_POLL_SECONDS = 0.1
_CHECK_SECONDS = 3.0


class Ahead(Generic[Item]):
    """Iterates named tuples that `items` makes, moved to `device`; `items` runs in a thread of its own.

    On a GPU the thread pins, copies and decodes on `stream`; the consumer's stream waits for it, the host does not.
    The stream is the caller's, one for all epochs: torch keeps freed memory per stream, so a new one each epoch
    would take new memory each epoch. While nothing comes, `check` is called every few seconds; it raises where nothing
    will come any more.
    """

    def __init__(
        self,
        items: Generator[Item, None, None],
        device: torch.device,
        stream: torch.cuda.Stream | None,
        check: Callable[[], None],
    ) -> None:
        self._items, self._device, self._stream, self._check = items, device, stream, check
        self._lost = False  # the thread will not end
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="fastclip-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            got = self._next()
            if got is _END:
                return
            if isinstance(got, BaseException):
                raise got
            item, event = got
            if event is not None:
                stream = torch.cuda.current_stream(self._device)
                stream.wait_event(event)
                for tensor in tensors(item):
                    tensor.record_stream(stream)  # its memory was allocated for the thread's stream
            yield item

    def close(self, timeout: float | None = None) -> None:
        """End the thread; it ends once the batch that it is making is made. Waits at most `timeout` seconds."""
        self._stop.set()
        self._thread.join(0 if self._lost else timeout)

    def _next(self) -> Any:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=_CHECK_SECONDS)
            try:
                self._check()
            except BaseException:
                self._lost = True
                raise

    def _produce(self) -> None:
        try:
            with self._side_stream(), contextlib.closing(self._items):
                for item in self._items:
                    if not self._put(self._moved(item)):
                        return
            self._put(_END)
        except BaseException as error:  # whatever it is belongs to the consumer's thread
            self._put(error)

    def _moved(self, item: Item) -> tuple[Item, torch.cuda.Event | None]:
        item = move(item, self._device)
        if self._device.type != "cuda":
            return item, None
        event = torch.cuda.Event()
        event.record()
        return item, event

    @contextlib.contextmanager
    def _side_stream(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def _put(self, got: Any) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(got, timeout=_POLL_SECONDS)
                return True
        return False


def move(item: Item, device: torch.device) -> Item:
    """The same named tuple with its tensors on `device`; copies to a GPU go through pinned memory, without waiting."""
    if device.type == "cpu":
        return item
    return type(item)(*(_to(part, device) for part in item))


def tensors(item: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors of a named tuple and of those in it."""
    for part in item:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, tuple):
            yield from tensors(part)


def _to(part: Any, device: torch.device) -> Any:
    if isinstance(part, Tensor):
        return _tensor_to(part, device)
    return move(part, device) if isinstance(part, tuple) else part


def _tensor_to(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

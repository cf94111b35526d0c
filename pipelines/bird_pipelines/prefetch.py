"""Work that is done ahead of its use, in threads, and handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

__all__ = ["in_order", "one_ahead"]

T = TypeVar("T")
U = TypeVar("U")


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], U], items: Iterable[T], depth: int) -> Iterator[U]:
    """What `work` makes of each item, in order, at most `depth` of them made or in the making beside the one in use."""
    queue: deque[Future[U]] = deque()
    upcoming = iter(items)
    for item in islice(upcoming, depth):
        queue.append(pool.submit(work, item))
    while queue:
        found = queue.popleft().result()
        for item in islice(upcoming, 1):
            queue.append(pool.submit(work, item))
        yield found


def one_ahead(work: Callable[[T], U], items: Iterable[T]) -> Generator[U]:
    """The results of `work` on each item, in order. While one is in use, a thread computes the next. An error of `work`
    is raised at its item's turn. Close the iterator to end the thread before the items end."""
    pool = ThreadPoolExecutor(1, "ahead", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from in_order(pool, work, items, 1)
    finally:
        pool.shutdown(cancel_futures=True)

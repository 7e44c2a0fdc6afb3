"""The pauses between polls."""

from __future__ import annotations

import threading

from tokencache.backends._polling import PollPacer


def test_many_pollers_poll_no_more_often_than_a_few() -> None:
    """INV-8: a thousand waiting threads together look no more often, so the thread that wakes them can run."""
    pacer = PollPacer(0.01, 0.05)
    there, over = threading.Barrier(65), threading.Event()

    def member() -> None:
        with pacer:
            there.wait(30)
            over.wait(30)

    with pacer:
        alone = [pacer.pause() for _ in range(100)]
    threads = [threading.Thread(target=member) for _ in range(64)]
    for thread in threads:
        thread.start()
    there.wait(30)
    together = [pacer.pause() for _ in range(100)]
    over.set()
    for thread in threads:
        thread.join(30)
    assert 0.01 <= min(alone) <= max(alone) <= 0.05
    assert 0.04 <= min(together) <= max(together) <= 0.2
    assert 0.01 <= min(pacer.pause() for _ in range(100)) <= 0.05, "all have left"

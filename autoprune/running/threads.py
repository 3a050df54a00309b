"""Threads of the driver that take turns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_SECONDS = 0.0005


@contextmanager
def quick_turns() -> Iterator[None]:
    """Have threads take turns every half a millisecond, as long as the context lasts.

    After each write to the disk the driver waits for its turn, and MLflow's thread takes all of its
    own: Python's 5 ms, some thirty times a trial, while a worker waits for its next plan.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)

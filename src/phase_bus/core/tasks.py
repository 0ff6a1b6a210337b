"""What asyncio does not say of a task."""

from __future__ import annotations

import asyncio


def is_to_end() -> bool:
    """Return whether the task at work was cancelled; if not, a CancelledError is of what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

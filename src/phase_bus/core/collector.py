"""Python's garbage collector, in processes that are ours alone: never in the benchmark's."""

from __future__ import annotations

import gc


def leave_alone_what_is_there() -> None:
    """Have the collector pass over what is there by now: all modules, with what they have made.

    Now and then it looks through everything, and nothing else happens meanwhile: with a few hundred modules
    that takes 20 to 50 ms, by which every event waits.
    """
    gc.freeze()

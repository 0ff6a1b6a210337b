"""How a bus behaves."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import fields

from phase_bus.core.numbers import check_finite
from phase_bus.journal.rows import Durability


class BusOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bus behaves.

    Attributes:
        heartbeat_s: how often clients are to say that they are alive, in seconds.
        silent_after_s: seconds of silence after which a client counts as gone; the runs of a publisher that
            is gone end as ``lost``.
        high_water_mark: events queued for each consumer at most; more wait in the journal, or are lost
            without one.
        max_message_bytes: larger messages are refused.
        max_connections: who comes when there are so many is turned away, and tries again; a consumer has
            three, a publisher one. There are fewer if the system does not allow as many open files.
        handshake_s: seconds in which who connects must have introduced itself as a client of ZeroMQ's.
        durability: when events are acknowledged. ``write``: once they are written to the journal; a kill
            of the bus takes none of them, a power cut may take the last moments. ``fsync``: once they are
            on the disk, so that a power cut takes none either; all that came in meanwhile share one fsync.
    """

    heartbeat_s: float = 1.0
    silent_after_s: float = 10.0
    high_water_mark: int = 1000
    max_message_bytes: int = 256 << 20
    max_connections: int = 1000
    handshake_s: float = 5.0
    durability: Durability = "write"

    def __post_init__(self) -> None:
        check_finite(self)
        for each in fields(BusOptions):  # and not of one that has more
            value = getattr(self, each.name)
            if not isinstance(value, str) and not value > 0:
                raise ValueError(f"{each.name} must be more than 0, not {value:g}")

"""How a bus behaves."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import fields

from phase_bus.core.control import DEFAULT_MAX_MESSAGE_BYTES
from phase_bus.core.numbers import check_finite
from phase_bus.events import LARGEST_BATCH
from phase_bus.journal.rows import Durability


class BusOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bus behaves.

    Attributes:
        heartbeat_s: how often clients are to say that they are alive, in seconds.
        silent_after_s: seconds of silence after which a client counts as gone; the runs of a publisher that
            is gone end as ``lost``.
        high_water_mark: events queued for each consumer at most; more wait in the journal, or are lost
            without one.
        max_message_bytes: larger messages are refused. Publishers learn it, and make smaller batches.
        max_queue_bytes: what one connection may have waiting here, if all of it is as large as may be.
        max_connections: who comes when there are so many is turned away, and tries again; a consumer has
            three, a publisher one. There are fewer if the system does not allow as many open files.
        handshake_s: seconds in which who connects must have introduced itself as a client of ZeroMQ's.
        max_topic_bytes: longer topics are refused.
        max_name_bytes: longer names of runs, clients, groups and hosts are refused.
        max_topics: topics that one publisher may have in one run.
        max_partitions: partitions that records may be in: their numbers are below this. Each is a share in
            every group.
        max_sources: publishers that may be here at once.
        max_consumers: consumers, and others that look on, that may be here at once.
        max_clients_a_connection: publishers and consumers that may share one connection; ours never do.
        max_groups: consumer groups that may be here at once.
        max_subscriptions: topic prefixes that a consumer may take.
        max_open_runs: runs that may be going on at once.
        max_names_a_client: runs, consumer names and publisher ids that are kept as one client's own, where
            clients have keys or a directory is shared.
        max_checkpoints: consumers and groups whose place the journal keeps. One that was away for longer
            than max_absence_s makes room for another.
        max_batch_records: records that one event may carry.
        max_nesting: how deep lists and objects in one another may be in parameters and results of runs.
        max_log_lines_s: lines a second that the bus logs about what others do.
        durability: when events are acknowledged. ``write``: once they are written to the journal; a kill
            of the bus takes none of them, a power cut may take the last moments. ``fsync``: once they are
            on the disk, so that a power cut takes none either; all that came in meanwhile share one fsync.
    """

    heartbeat_s: float = 1.0
    silent_after_s: float = 10.0
    high_water_mark: int = 1000
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    max_queue_bytes: int = 128 << 20
    max_connections: int = 1000
    handshake_s: float = 5.0
    max_topic_bytes: int = 512
    max_name_bytes: int = 256
    max_topics: int = 1000
    max_partitions: int = 256
    max_sources: int = 1000
    max_consumers: int = 1000
    max_clients_a_connection: int = 64
    max_groups: int = 200
    max_subscriptions: int = 256
    max_open_runs: int = 1000
    max_names_a_client: int = 10_000
    max_checkpoints: int = 1000
    max_batch_records: int = LARGEST_BATCH
    max_nesting: int = 32
    max_log_lines_s: float = 20.0
    durability: Durability = "write"

    def __post_init__(self) -> None:
        check_finite(self)
        for each in fields(BusOptions):  # and not of one that has more
            value = getattr(self, each.name)
            if not isinstance(value, str) and not value > 0:
                raise ValueError(f"{each.name} must be more than 0, not {value:g}")
        if self.max_batch_records > LARGEST_BATCH:
            raise ValueError(
                f"max_batch_records must be at most {LARGEST_BATCH}, not {self.max_batch_records}"
            )

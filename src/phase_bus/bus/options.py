"""How a bus behaves."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import fields

from phase_bus.core.control import DEFAULT_MAX_MESSAGE_BYTES
from phase_bus.core.numbers import check_finite
from phase_bus.events import LARGEST_BATCH
from phase_bus.journal.rows import Durability

_LAST_PORT = 65535


class BusOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bus behaves.

    Attributes:
        heartbeat_s: how often clients have to say that they are alive, in seconds.
        silent_after_s: seconds of silence after which a client counts as gone; the runs of a publisher that
            is gone end as ``lost``.
        high_water_mark: the maximum number of messages (an event or a bundle) queued for each consumer;
            others wait in the journal, or are lost without one.
        max_message_bytes: larger messages are refused. Publishers are told, and make smaller batches.
        max_queue_bytes: how much one connection may have waiting, if all messages have the maximum size.
        max_connections: further connections are turned away, and try again; a consumer has three, a
            publisher one. There are fewer if the system does not allow as many open files.
        handshake_s: seconds within which a new connection must have completed ZeroMQ's handshake.
        max_topic_bytes: longer topics are refused.
        max_name_bytes: longer names of runs, clients, groups and hosts are refused.
        max_topics: topics that one publisher may use in one run.
        max_partitions: partitions that records may be in; their numbers are below this. Each is a share in
            every group.
        max_sources: publishers that may be here at once.
        max_consumers: consumers, and mere observers, that may be here at once.
        max_clients_a_connection: publishers and consumers that may share one connection; ours never do.
        max_groups: consumer groups that may be here at once.
        max_subscriptions: topic prefixes that a consumer may subscribe to.
        max_open_runs: runs that may be going on at once.
        max_names_a_client: runs, consumer names and publisher ids that can belong to one client, where
            clients have keys or a directory is shared.
        max_checkpoints: consumers and groups whose position the journal stores. One that was away for
            longer than max_absence_s makes room for another.
        max_batch_records: records that one event may carry.
        max_nesting: how deeply lists and objects may be nested in parameters and results of runs.
        max_log_lines_s: lines per second that the bus logs about what clients do.
        events_port: the TCP port of live events, where it has a tcp address; by default the next one after
            that address's, or any if that cannot be had.
        replay_port: the TCP port of past events, from the journal; by default the one after that.
        durability: when events are acknowledged. ``write``: once they are written to the journal; killing
            the bus loses none of them, a power cut may lose the last moments. ``fsync``: once they are on
            the disk, so that a power cut loses none either; events that arrive together share one fsync.
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
    events_port: int | None = None
    replay_port: int | None = None
    durability: Durability = "write"

    def __post_init__(self) -> None:
        check_finite(self)
        for each in fields(BusOptions):  # and not of one that has more
            value = getattr(self, each.name)
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"{each.name} must be more than 0, not {value:g}")
        for name in ("events_port", "replay_port"):
            if (getattr(self, name) or 0) > _LAST_PORT:
                raise ValueError(f"{name} must be at most {_LAST_PORT}, not {getattr(self, name)}")
        if self.max_batch_records > LARGEST_BATCH:
            raise ValueError(
                f"max_batch_records must be at most {LARGEST_BATCH}, not {self.max_batch_records}"
            )

"""Beyond one machine: what buses forward into a NATS JetStream stream, and consumers that read it there.

The benchmark speaks to its own bus, by ZeroMQ, and to nothing else. A :mod:`forwarder
<phase_bus.jetstream.forwarder>` reads that bus's journal as a consumer does and appends it to the stream;
a :mod:`transport <phase_bus.jetstream.transport>` serves consumers elsewhere from there.

This package needs the extra ``nats``.
"""

"""The bus process: takes events in, acknowledges them, and fans them out to consumers.

:mod:`~phase_bus.bus.server` is the loop, over :mod:`~phase_bus.bus.sockets`. An event goes from there into
the :mod:`~phase_bus.bus.stream`, which gives it its place, writes it into the
:mod:`~phase_bus.journal.writer`, and publishes it; :mod:`~phase_bus.bus.replay` hands out what is past.

Who is there and how the runs are is in the :mod:`~phase_bus.bus.ledger`. :mod:`~phase_bus.bus.clients`
come and go; :mod:`~phase_bus.bus.checkpoints` keep how far consumers are; :mod:`~phase_bus.bus.groups`
share work among their :mod:`~phase_bus.bus.members`; :mod:`~phase_bus.bus.run_ends` are for runs that
nobody else ends.
"""

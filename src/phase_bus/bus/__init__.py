"""The bus process: takes events in, acknowledges them, and fans them out to consumers.

:mod:`~phase_bus.bus.server` is the loop, over :mod:`~phase_bus.bus.sockets`. An event goes from there into
the :mod:`~phase_bus.bus.stream`, which gives it its place, writes it into the
:mod:`~phase_bus.journal.writer`, and publishes it; :mod:`~phase_bus.bus.replay` hands out past events.

Who is connected is in :mod:`~phase_bus.bus.clients`, what was published of each run in
:mod:`~phase_bus.bus.runs`. :mod:`~phase_bus.bus.groups` share work among consumers, and
:mod:`~phase_bus.bus.checkpoints` keep how far consumers are.
"""

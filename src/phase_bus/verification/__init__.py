"""``phase-bus verify``: the measured proof that the bus does not slow the benchmark down.

One AIPerf command is run in four modes, alternating, in rounds; each mode is then held against the mode
``off`` of the same round, so that what drifts from round to round strikes both.

A ``session`` runs ``trial`` after trial, each with the AIPerf ``command``; ``intervals`` decide on the
``measures``, and ``result`` and ``text`` say what came of it.
"""

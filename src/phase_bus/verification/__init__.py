"""``phase-bus verify``: the measured proof that the benchmark does not feel the bus.

One AIPerf command is run in four modes, alternating, in rounds; each mode is then held against the mode
``off`` of the same round, so that what drifts from round to round strikes both.

- :mod:`~phase_bus.verification.plan`: the modes, and in which order they take their turns.
- :mod:`~phase_bus.verification.command`: the AIPerf command: checked, and run with its output in a file.
- :mod:`~phase_bus.verification.trial`: one run in one mode, and what was measured of it.
- :mod:`~phase_bus.verification.session`: all rounds.
- :mod:`~phase_bus.verification.intervals`: the confidence intervals and what they decide.
- :mod:`~phase_bus.verification.result`, :mod:`~phase_bus.verification.text`: the document and its tables.
"""

"""phase-bus: follow AIPerf benchmark runs from independent processes, over ZeroMQ."""

__version__ = "0.1.0"

"""``python -m phase_bus`` is ``phase-bus``."""

from phase_bus.cli import main

if __name__ == "__main__":
    main()

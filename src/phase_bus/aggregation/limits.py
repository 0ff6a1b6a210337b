"""How much of what comes from a run's data is kept: there may be any number of names, of any length.

A limit is applied to each partition in the order of its records, so that what is kept depends on nothing
else. What is beyond it is counted, and only the breakdown is lost: totals are right.
"""

from __future__ import annotations

# A value beyond this is set aside: no sum of values within it, nor a rate made of that, leaves the floats.
LARGEST = 1e250

# In each partition, over all its phases.
MAX_PHASES = 100
MAX_METRICS = 1000
MAX_ERROR_TYPES = 500
# Longer names of metrics are left out, longer types of errors are cut.
LONGEST_NAME = 200

# In a summary: the most frequent ones in each phase.
LISTED_METRICS = 300
LISTED_ERRORS = 50

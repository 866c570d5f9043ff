"""Limits of the sizes that a configuration may ask for.

No model that fits a machine reaches them: what is beyond is a slip, and building it would take all memory, or hours.
"""

LARGEST_SIZE = 10**7  # of a vocabulary, a context, a width
MOST_LAYERS = 1000

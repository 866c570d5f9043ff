"""A module that can be imported once: in the process that sends its function to others."""

import os

if os.environ.setdefault("TEST_IMPORTED_BY", str(os.getpid())) != str(os.getpid()):
    raise ImportError("the data of this module are on another machine")


def run(prepare, seed, learning_rate):
    raise AssertionError("it ran")

"""Checks on a converted model that its preconditioners are called, and what keeps compiled code apart."""

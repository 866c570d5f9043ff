"""Paired measurement of time and memory against plain attention."""

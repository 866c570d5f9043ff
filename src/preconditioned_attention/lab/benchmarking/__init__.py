"""Paired measurements of time and memory relative to plain attention."""

"""Preconditioned attention."""

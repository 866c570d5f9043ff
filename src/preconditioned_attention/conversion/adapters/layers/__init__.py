"""The layers of this package."""

"""`check_adapter`, and what it measures by."""

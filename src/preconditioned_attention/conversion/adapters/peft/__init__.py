"""PEFT: saving of adapters. PEFT itself has no attention."""

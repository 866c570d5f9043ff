"""x-transformers: `Attention`."""

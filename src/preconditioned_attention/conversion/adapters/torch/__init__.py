"""torch.nn: `MultiheadAttention`."""

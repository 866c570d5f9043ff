"""flash-attn: `MHA`."""

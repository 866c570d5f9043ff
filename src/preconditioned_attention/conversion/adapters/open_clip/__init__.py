"""open_clip: its `Attention` and the attention pooling of its ResNets."""

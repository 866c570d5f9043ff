"""open_clip: its own attention and the attention pooling of its ResNets."""

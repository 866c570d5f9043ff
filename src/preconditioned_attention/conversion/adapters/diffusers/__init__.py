"""diffusers: the attention of its U-Nets, transformers and autoencoders."""

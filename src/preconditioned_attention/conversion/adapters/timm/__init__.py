"""timm: its attention layers and those of its models."""

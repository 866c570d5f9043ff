"""torchvision: Swin, MViT and MaxViT."""

"""Models that timm, transformers and torchvision do not have whole: detectors on attention backbones."""

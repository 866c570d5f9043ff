"""Models that timm, transformers and torchvision lack: detectors, crammed BERT and Nystromformer."""

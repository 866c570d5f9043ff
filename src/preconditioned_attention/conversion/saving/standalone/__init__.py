"""Two files that are copied into every transformers folder of a converted model, and run there without this package.

They import torch, transformers and each other only. `preconditioned_folder` defines the form of a folder and reads and
writes it, also for this package; `modeling_preconditioned` computes where this package is not installed.
"""

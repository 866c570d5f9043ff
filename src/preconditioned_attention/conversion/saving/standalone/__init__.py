"""Two files that are copied into every transformers folder of a converted model, to be run there without this package.

They import torch, transformers and each other, and nothing of ours. `preconditioned_folder` is what a folder looks like
and how one is written and read, which this package does through it too; `modeling_preconditioned` computes, where this
package is not installed.
"""

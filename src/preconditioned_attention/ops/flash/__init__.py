"""Flash-type kernels, re-normalized: `autograd` has the function, one file per kernel its forward and backward call.

See `rows` for the identity.
"""

"""One folder per library: `tables` and `unsupported` are data, `swaps` are subclasses with another forward."""

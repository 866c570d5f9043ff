"""The ways to go through the runs of a comparison: in this process, in several, on a Ray cluster, under torchrun."""

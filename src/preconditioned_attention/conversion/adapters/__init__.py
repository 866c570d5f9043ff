"""One file per library: what its attention modules look like and how each takes a preconditioner."""

"""What uses the library: experiments, comparisons, benchmarks, inspection of models, and the census of libraries."""

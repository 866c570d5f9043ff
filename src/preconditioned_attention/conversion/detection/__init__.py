"""Which modules of a model compute attention: by their code, and by what runs."""

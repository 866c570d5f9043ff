"""transformers: attention that looks its function up, and attention that does not."""

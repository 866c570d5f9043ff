"""What other libraries hold and what conversion does to it: counts, tables, and the code that nobody has read."""

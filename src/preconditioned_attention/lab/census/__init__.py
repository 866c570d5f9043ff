"""The attention classes of other libraries: tables and counts of what conversion does, and reviews of their source."""

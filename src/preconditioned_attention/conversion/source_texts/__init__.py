"""The source texts of other libraries' attention classes, and the table of those that have been read."""

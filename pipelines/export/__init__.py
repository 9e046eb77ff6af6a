"""Built datasets to the files that other projects read."""

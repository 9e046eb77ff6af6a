"""Facts that builds are checked against, and the bundled sample."""

"""What other projects import in place of their own readers. No torch."""

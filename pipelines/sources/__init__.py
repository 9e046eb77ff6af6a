"""One reader per annotation family."""

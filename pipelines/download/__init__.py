"""Annotations and images of published datasets, downloaded from mirrors and checked by size and digest.

- `catalogue.py` reads `manifests/downloads.toml`: files with their sizes, digests and mirrors, and which dataset needs
  which.
- `pinned_file.py` fetches one file whose digest is known: resumed by byte ranges, from the next mirror on failure.
- `needed_images.py` finds the images that annotations refer to, and fetches these alone.
- `run.py` strings them together: what is missing, free space, files, images.
"""

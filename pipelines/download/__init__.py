"""Downloads annotations and images of published datasets from mirrors, and checks their sizes and digests.

- `catalogue.py` reads `manifests/downloads.toml`. It lists the files with sizes, digests and mirrors, and the files
  that each dataset needs.
- `pinned_file.py` fetches one file whose digest is known. It resumes with byte ranges, and tries the next mirror after
  a failure.
- `needed_images.py` finds the images that annotations refer to, and fetches only these.
- `run.py` finds what is missing, checks the free disk space, and fetches the files and images.
"""

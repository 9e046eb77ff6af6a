"""Facts that builds are checked against, and the bundled sample."""

from pathlib import Path


def sample_folder() -> Path:
    """Root of the bundled sample `sample/ccby` in REFER's layout; its README names the credits."""
    return Path(__file__).parent / "sample"

"""Runs the command line for `python -m refseg` and `accelerate launch -m refseg`."""

import sys

from refseg.cli import main

sys.exit(main())

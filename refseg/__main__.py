"""`python -m refseg` and `accelerate launch -m refseg`: the command line."""

import sys

from refseg.cli import main

sys.exit(main())

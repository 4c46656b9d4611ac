"""`python -m hypergrad`."""

import sys

from hypergrad.workbench.command_line.main import main

sys.exit(main())

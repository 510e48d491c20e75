"""``python -m smt_vision`` is ``smt``."""

import sys

from .cli import main

sys.exit(main())

"""python -m sdegen"""

import sys

from .app.cli import main

sys.exit(main())

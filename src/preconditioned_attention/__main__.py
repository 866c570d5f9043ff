"""``python -m preconditioned_attention`` is ``precond``."""

import sys

try:
    from .cli import main
except KeyboardInterrupt:
    sys.exit(130)

raise SystemExit(main())

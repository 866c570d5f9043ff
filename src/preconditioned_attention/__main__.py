"""``python -m preconditioned_attention`` is ``precond``."""

from .cli import main

raise SystemExit(main())

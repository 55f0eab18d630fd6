"""The `crust` command as tests start it where its script may not be found: in other namespaces, with another home."""

from __future__ import annotations

import sys

CRUST = (sys.executable, "-c", "from crust.cli import main; raise SystemExit(main())")

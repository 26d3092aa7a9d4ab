"""The logger of the library, silent until the application configures logging. No secrets, no content go there."""

from __future__ import annotations

import logging

log = logging.getLogger("distier")
log.addHandler(logging.NullHandler())

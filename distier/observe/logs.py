"""The logger of the library. It is silent until the application configures logging. It logs no secrets and no content."""

from __future__ import annotations

import logging

log = logging.getLogger("distier")
log.addHandler(logging.NullHandler())

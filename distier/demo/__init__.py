"""The demo: agents that share modules under memory pressure, and a check of every byte at the end."""

from __future__ import annotations

from distier.demo.agent import corpus, demo_config, open_demo, run_check
from distier.demo.report import (
    DEMOTING,
    READ_ARCHIVE,
    READ_BACK,
    Ack,
    AgentRow,
    Problem,
    Progress,
    Report,
    Settings,
    account_errors,
    hit_rates,
    merge,
    verdict,
)
from distier.demo.run import run

__all__ = [
    "DEMOTING",
    "READ_ARCHIVE",
    "READ_BACK",
    "Ack",
    "AgentRow",
    "Problem",
    "Progress",
    "Report",
    "Settings",
    "account_errors",
    "corpus",
    "demo_config",
    "hit_rates",
    "merge",
    "open_demo",
    "run",
    "run_check",
    "verdict",
]

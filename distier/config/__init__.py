"""Settings: `load_config` reads them into a `Config` with its sections."""

from __future__ import annotations

from distier.config.layers import ALIASES, ENV_PREFIX, load_config
from distier.config.model import ARCHIVE_REQUIRED, Config, TransformName
from distier.config.paths import NO_ARCHIVE, check_directory, expanded, is_url
from distier.config.secrets import mask_url
from distier.config.units import Count, format_duration, format_size, parse_duration_ms, parse_size_bytes
from distier.config.urls import (
    CLUSTER_SCHEMES,
    SENTINEL_SCHEMES,
    TLS_SCHEMES,
    Address,
    ClusterUrl,
    parse_cluster_url,
    parse_sentinel_url,
)

__all__ = [
    "ALIASES",
    "ARCHIVE_REQUIRED",
    "CLUSTER_SCHEMES",
    "ENV_PREFIX",
    "NO_ARCHIVE",
    "SENTINEL_SCHEMES",
    "TLS_SCHEMES",
    "Address",
    "ClusterUrl",
    "Config",
    "Count",
    "TransformName",
    "check_directory",
    "expanded",
    "format_duration",
    "format_size",
    "is_url",
    "load_config",
    "mask_url",
    "parse_cluster_url",
    "parse_duration_ms",
    "parse_sentinel_url",
    "parse_size_bytes",
]

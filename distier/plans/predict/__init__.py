"""Prediction: what the fleet has learned, and bringing predicted modules nearer."""

from __future__ import annotations

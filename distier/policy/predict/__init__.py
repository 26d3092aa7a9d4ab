"""Prediction: which modules a session will use next. Pure functions and values, with the time as an argument."""

from __future__ import annotations

from distier.policy.predict.predictor import Context, Outcomes, Prediction, Predictor, Walk

__all__ = ["Context", "Outcomes", "Prediction", "Predictor", "Walk"]

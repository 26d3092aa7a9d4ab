"""The settings of prediction."""

from __future__ import annotations

from pydantic import Field

from distier.config.section import Section
from distier.config.units import MAX_INT, Count, Number


class PredictionConfig(Section):
    """Sessions (`store.session()`) learn which modules follow each other, and load what will probably be used next, in the
    background. Predictions whose precision is below `precision_target` are not acted on."""

    enabled: bool = Field(default=False, description="whether the sessions of this process learn and load ahead")
    precision_target: Number = Field(
        default=0.5, ge=0.05, le=0.95, description="least fraction of the modules loaded ahead that must be used"
    )
    archive_reads_per_second: Number = Field(
        default=10.0, ge=0, le=100_000, description="maximum archive reads of this process for predicted modules"
    )
    max_modules: Count = Field(
        default=10_000,
        ge=16,
        le=MAX_INT,
        description="modules whose followers this process knows at once, about a kilobyte each; the fleet knows more",
    )

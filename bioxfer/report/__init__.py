"""Report: what cards, evaluations and predictions say, as pictures and as self-contained HTML pages.

Each ``plot_`` function draws into axes of the caller's, or into a figure of its own:
``plot_reliability(card).figure``. The pages hold the same figures.
"""

from __future__ import annotations

from bioxfer.report.figures import (
    PLOTS,
    check_plot,
    plot_baselines,
    plot_confusion,
    plot_identity,
    plot_learning_curve,
    plot_numbers,
    plot_reliability,
    save_plot,
)
from bioxfer.report.heads import report_evaluation, report_head
from bioxfer.report.maps import plot_counts, plot_histogram, plot_map, plot_track
from bioxfer.report.page import Page, check_report
from bioxfer.report.predictions import PredictionReport

__all__ = [
    "PLOTS",
    "Page",
    "PredictionReport",
    "check_plot",
    "check_report",
    "plot_baselines",
    "plot_confusion",
    "plot_counts",
    "plot_histogram",
    "plot_identity",
    "plot_learning_curve",
    "plot_map",
    "plot_numbers",
    "plot_reliability",
    "plot_track",
    "report_evaluation",
    "report_head",
    "save_plot",
]

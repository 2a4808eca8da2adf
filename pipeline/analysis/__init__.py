"""From tracked runs to pandas tables, statistics, comparisons and the report page."""

from pipeline.analysis.runs import load_runs

__all__ = ["load_runs"]

"""Analytic latency forms, one file per kind of kernel."""

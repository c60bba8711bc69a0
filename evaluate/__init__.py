"""Evaluation: metrics, inverse dynamics, suites, reports."""

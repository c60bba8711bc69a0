"""Hydra configurations, one YAML file a verb."""

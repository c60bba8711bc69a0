"""Procedural ViZDoom levels as a World."""

"""Habitat: scenes of habitat-sim as a World, and what to walk through them with."""

"""Zarr stores of episodes: schema, writer, reader, clips, collection, validation."""

"""Zarr stores of episodes: schema, writer, reader, clips, collection, care, other formats."""

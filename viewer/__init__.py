"""The viewer: drive a World live, record it, or run it from a script."""

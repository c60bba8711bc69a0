"""Readers of other formats: one module each, with `read(source, options, report)`."""

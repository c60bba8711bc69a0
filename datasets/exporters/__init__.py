"""Writers of other formats: one module each, with `write(store, names, out)`."""

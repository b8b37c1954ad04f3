"""Moving disk data: from an NBD export into the repository, and from the repository into images."""

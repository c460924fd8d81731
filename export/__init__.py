"""A checkpoint in, a checked bundle out."""

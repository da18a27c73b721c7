"""A Dataset in, a run folder out."""

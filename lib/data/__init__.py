"""Photographs in, a torch Dataset out."""

"""The papers' methods, one file a paper; torch alone."""

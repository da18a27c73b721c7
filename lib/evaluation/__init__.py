"""Answers and maps in, numbers out."""

"""Inspection of a dataset before training: what is in it, and what is wrong with it."""

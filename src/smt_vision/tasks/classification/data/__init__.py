"""Datasets, transforms and loaders of the task."""

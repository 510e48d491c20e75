"""Datasets, transforms and data loaders for detection."""

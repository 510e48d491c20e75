"""Datasets, transforms and data loaders for image classification."""

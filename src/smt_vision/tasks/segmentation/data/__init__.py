"""Datasets, transforms and data loaders of segmentation."""

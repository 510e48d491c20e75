"""Semantic segmentation, and binary segmentation of salient or camouflaged objects."""

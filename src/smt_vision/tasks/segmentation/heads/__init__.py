"""Segmentation heads over any timm backbone."""

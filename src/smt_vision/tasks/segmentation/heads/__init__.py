"""Segmentation heads for any timm backbone."""

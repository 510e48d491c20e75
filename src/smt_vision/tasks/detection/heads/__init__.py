"""Detectors over any timm backbone."""

"""Detectors and segmenters over any backbone of timm's."""

"""Fused forms of the hot operators; each equals its plain form in ``model``, which runs wherever these cannot."""

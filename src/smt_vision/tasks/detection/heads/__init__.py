"""Detection heads for any timm backbone."""

"""Pictures that several tasks share, and the training curves."""

"""Pictures that several tasks share, and those of a training run."""

"""Data code that all tasks share: decoding, resizing, transforms, samplers and data loaders."""

"""What the datasets of all tasks share: decoding, resizing, transforms, samplers and loaders."""

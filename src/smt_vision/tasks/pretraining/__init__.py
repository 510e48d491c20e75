"""Self-supervised pretraining: initial weights from images without labels."""

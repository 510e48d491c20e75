"""Export of models to other runtimes, 8-bit quantization, and exported models in use."""

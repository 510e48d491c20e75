"""Models on their way into use: fused for inference, exported to other runtimes, quantized."""

"""Comparison of models side by side: timing, memory, cost, and published accuracy against measured throughput."""

"""Features of images by any model, and what is found with them: near duplicates, and leakage between splits."""

"""Hot operators as functions, each equal to PyTorch's own operators; the modules in ``forms`` use them."""

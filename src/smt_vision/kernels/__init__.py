"""Hot operators as functions of tensors; each equals PyTorch's own operators. The modules of ``forms`` use them."""

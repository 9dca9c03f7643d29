"""Image-text pairs for training: where they are kept and how a batch is made of them."""

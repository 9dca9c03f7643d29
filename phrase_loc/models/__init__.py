"""What has weights: trunks, the text head, and the model that joins them."""

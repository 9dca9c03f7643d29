"""Trunks: the registry of their stages, and where their pretrained weights come from."""

"""Words. english (tokens, forms, word lists) < parsing (roles) < phrases (weighted known words of a vocabulary).

splitting cuts texts into phrases; vectors and labels serve training.
"""

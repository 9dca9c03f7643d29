"""Words. english (tokens, forms, word lists) < parsing (roles) < phrases (weighted known words of a vocabulary).

splitting cuts texts into phrases; vocabulary holds the known words and the weak labels of an image in them, vectors
the word vectors that training begins with.
"""

"""Words: from captions to a vocabulary and its vectors, from a phrase to weighted words.

words (tokens, dictionary forms) < grammar (closed word classes) < parsing (roles) < vocabulary, counting <
phrases (the rule from a phrase to known words, with word_list and notes); splitting cuts typed text into
phrases; embeddings and tables hold vectors, labels and captions
serve training and the query page.
"""

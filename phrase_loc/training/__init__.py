"""Training: from weakly labelled images to a model folder (run.py), on one machine or many."""

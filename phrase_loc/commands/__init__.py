"""One file a sub-command of `phrase-loc`: add_arguments(parser) and run(args)."""

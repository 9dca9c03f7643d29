"""The sub-commands of `phrase-loc`: NAME_arguments(parser) and run_NAME(args)."""

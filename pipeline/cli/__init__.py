"""The command line: one module per group of verbs, and the options that they share."""

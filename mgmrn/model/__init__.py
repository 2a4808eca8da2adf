"""The blocks of Mg-MRN (arXiv 2511.08163), one per file."""

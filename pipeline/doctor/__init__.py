"""`doctor`: what on this machine speaks against a run, and how to mend it."""

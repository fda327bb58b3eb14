"""Critical batch size from sweeps and from steps-to-target tables."""

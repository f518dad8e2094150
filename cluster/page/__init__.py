"""A page in the browser: what the operators' door tells, live."""

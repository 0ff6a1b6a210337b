"""Reports of past runs: where their numbers come from, and the forms they are shown in."""

"""The benchmark's side: events and request records leave the process without it ever waiting."""

"""What every part stands on: addresses, the wire, records, and the machinery of sockets, threads, files."""

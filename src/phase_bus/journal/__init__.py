"""The bus's durable, ordered log of events: written by the bus, read by everybody."""

"""The bus process: takes events in, acknowledges them, and fans them out to consumers."""

"""What runs around a benchmark: buses and consumers as child processes, the command itself, replays."""

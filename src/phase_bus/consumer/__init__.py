"""What runs consumers: a share of the stream for each instance, and the processes around them."""

"""From a plan to files: laid out, copied and computed on threads, published whole or not at all."""

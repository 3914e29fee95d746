"""Terms that pixels are sold by, and what is ordered under them."""

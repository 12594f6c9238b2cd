"""What a run costs on which machine: a dated book of machines and prices, and the arithmetic on it."""

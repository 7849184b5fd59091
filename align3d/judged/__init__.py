"""Results that are there already, judged: whose they are, what rewards say of them, and how methods compare."""

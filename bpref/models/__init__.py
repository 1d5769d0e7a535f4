"""Networks: compositions of the rules, and the seed's own, written out as its page derives it."""

"""Forms as they are written down, which judge: of bpref they know its data types alone, and share no mistake."""

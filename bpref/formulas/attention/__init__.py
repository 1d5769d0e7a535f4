"""What the rules of attention share: heads, which pairs of positions meet, positions, and the softmax in blocks."""

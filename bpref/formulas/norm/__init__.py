"""What norms and reductions share: axes that go and come back, means, deviations, lengths."""

"""What mixtures of experts share: chosen experts, and rows in the order of their expert."""

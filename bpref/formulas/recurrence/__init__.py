"""What the rules with a state share: steps through time and back, chunks of them, and what is left of earlier ones."""

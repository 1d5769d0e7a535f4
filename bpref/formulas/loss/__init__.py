"""What the losses share: their terms and mean, labels and weights, logits by blocks of classes, preferences."""

"""Rules that end in one number, the mean over the batch included."""

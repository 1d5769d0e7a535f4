"""What moves pixels: resizing, sampling, padding, and channels made into space."""

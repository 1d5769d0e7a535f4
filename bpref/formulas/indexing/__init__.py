"""What is done along one axis by indices: rows read and added to, segments, shifted copies."""

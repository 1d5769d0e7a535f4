"""What an index chooses, and where it adds: gathers, scatters, segments, sorting."""

"""What a run leaves on disk, what it goes on from, and what is read of it again."""

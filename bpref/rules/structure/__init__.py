"""What structures of proteins are predicted by: pairs of residues, each updated through all third ones."""

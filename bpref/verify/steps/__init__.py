"""The steps of a derivation: a cotangent for every intermediate that the forward names."""

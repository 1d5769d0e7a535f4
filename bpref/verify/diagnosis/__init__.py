"""Hypotheses of what is wrong with a cotangent, each of them `(Residual) -> Diagnosis | None`."""

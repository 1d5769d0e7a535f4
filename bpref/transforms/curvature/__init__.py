"""Curvature: what backward passes say of second derivatives."""

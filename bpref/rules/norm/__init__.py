"""Layers that bring their input to a standard size: by its moments, by its length, or by a bounded curve."""

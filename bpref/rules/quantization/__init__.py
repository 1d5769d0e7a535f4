"""Layers whose forward takes steps, or turns round, and whose backward is a decision: straight-through estimators."""

"""Whole blocks of a network, each derived as one layer that keeps what the whole needs, not what its parts would."""

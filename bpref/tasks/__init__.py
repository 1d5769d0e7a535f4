"""Rules as tasks: a naive forward whose backward somebody else is to write, and the judge of what they wrote."""

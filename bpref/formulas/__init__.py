"""What several rules are made of: a formula that they share, or what they all ask of their input."""

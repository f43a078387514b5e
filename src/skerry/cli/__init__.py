"""How do we ask? One thin module per verb; no logic."""

"""How is it never born? Attention variants, training, monitors, penalties, studies."""

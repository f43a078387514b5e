"""What does it cost? Quantization, pruning and clipping, priced in the model's own loss."""

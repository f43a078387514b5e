"""How is it tamed? Transforms on seams, searches, equivalence, export."""

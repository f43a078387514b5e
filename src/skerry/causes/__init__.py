"""Where does it come from? The life of an outlier, interventions, and what sinks are for."""

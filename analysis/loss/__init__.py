"""Loss laws: L(N, D) parametric (approach 3), IsoFLOP minima (approach 2), envelope (approach 1), repeated data."""

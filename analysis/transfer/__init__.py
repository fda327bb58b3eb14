"""How well hyper-parameters transfer across scale: metrics, sensitivity, compute multipliers."""

"""Loss along training: annealing laws across schedules, optimal schedules, collapse."""

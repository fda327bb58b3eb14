"""How well hyper-parameters transfer across scale: `analysis=transfer`.

    E, kappa, R_inf      the three metrics of Kalra and Barkeshli (arXiv 2605.21486): quality.py, asymptote.py
    sensitivity          of the loss to the learning rate (Wortsman et al., arXiv 2309.14322): sensitivity.py
    compute multiplier   of one optimizer over another at equal loss (Qiu et al., arXiv 2512.05620): multiplier.py

Each module says what is the paper's and what is ours. Two kinds of LAW come out, which `recommend` passes over:
`transfer`, one for each line of scales (lines.py), and `compute_multiplier`, one for each compared value but the
reference.
"""

from analysis.transfer.metrics import fit
from analysis.transfer.options import Options

__all__ = ["Options", "fit"]

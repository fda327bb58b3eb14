"""Power laws of optima: log y = c + sum_p exponent_p * log x_p, with intervals and the error on held-out scales.

A LAW is a plain dict, ready for laws.json. Beyond the keys of the contract (analysis, name, given, form, unit, parameters,
r2, n, objective, heldout, method) every power law carries what a prediction interval needs:

    predictors   [names], in the order of the exponents
    covariance   matrix of (log coefficient, exponents...), natural log, already scaled for scatter; null if it is unknown
    scatter      residual s.d. of the optima about the law, natural log; null if it is unknown
    dof          degrees of freedom of covariance and scatter (Student t); 0 where they are unknown
    level        probability content of every interval of this law (0.8: from 10 % to 90 %)
    range        {predictor or params, tokens, tpp, batch_size: {"low":, "high":}} over the slices behind the law
    held         {column: geometric mean over the slices of what they held, for instance batch_size, tau, lr}
    behind       {kept predictor: [collinear predictors that it stands for]}
    notes        [lines that a reader should see]

Prediction at x, with z = (1, log x_1, ...) and q the Student-t quantile at (1 + level) / 2 with dof:
    log y = z @ (log coefficient, exponents),  half width of its interval = q * sqrt(z @ covariance @ z + scatter ** 2).
`predict(law, x)` below does it.
"""

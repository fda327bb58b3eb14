"""Figures of curve laws: curves with fits and predictions, the schedule of lowest predicted loss, a collapse."""

from typing import Any

import numpy as np

from analysis import style

MOST = 8  # curves of a panel


def fits(path: Any, law: Any, unseen: list) -> Any:
    """Losses (points) and the law (lines), fitted runs left, unseen runs right with their intervals; LR below."""
    sides = [("fitted", law.curves[:MOST])] + ([("unseen", list(unseen)[:MOST])] if unseen else [])
    fig = style.figure(style.PAGE if len(sides) > 1 else style.COLUMN * 1.3, 3.9)
    with style.style():
        axes = fig.subplots(2, len(sides), squeeze=False, sharex="col", height_ratios=(3, 1))
        for column, (title, curves) in enumerate(sides):
            top, below = axes[:, column]
            lowest, highest = np.inf, -np.inf
            for i, curve in enumerate(curves):
                colour = style.CATEGORIES[i % len(style.CATEGORIES)]
                later = curve.steps > law.from_step
                steps, losses = curve.steps[later], curve.losses[later]
                top.plot(steps, losses, ".", ms=2.5, color=colour, alpha=0.5)
                if len(steps):
                    thin = steps[np.unique(np.linspace(0, len(steps) - 1, 150).astype(int))]
                    loss, low, high = law.predict(curve.history, thin)
                    top.plot(thin, loss, color=colour, label=_name(curve))
                    if title == "unseen":
                        top.fill_between(thin, low, high, color=colour, alpha=0.12, lw=0)
                    lowest, highest = min(lowest, losses.min()), max(highest, np.quantile(losses, 0.9))
                below.plot(curve.history.steps, curve.history.lr, color=colour, lw=1)
            if highest > lowest:
                top.set_ylim(lowest - 0.15 * (highest - lowest), highest + 0.5 * (highest - lowest))
            top.set_title(f"{title} runs, {law.name.replace('_', ' ')} law", loc="left")
            top.legend(loc="upper right", handlelength=1.2)
            below.set_xlabel("step")
            _few_steps(below)
        axes[0, 0].set_ylabel("loss (nats per token)")
        axes[1, 0].set_ylabel("learning rate")
    return style.save(fig, path)


def schedules(path: Any, plan: Any) -> Any:
    """The schedule of lowest predicted loss among common ones, each with its excess of predicted final loss."""
    fig = style.figure(style.PAGE * 0.8, 2.8)
    with style.style():
        ax = fig.subplots()
        for i, row in enumerate(plan.compared.to_dict("records")):
            history = plan.forms[row["schedule"]]
            shown = f"{row['schedule']} ({row['excess']:+.4f})" if i else f"{row['schedule']} ({row['predicted']:.4f} nats)"
            colour = "black" if not i else style.CATEGORIES[(i - 1) % 6]
            ax.plot(history.steps, history.lr, color=colour, lw=2 if not i else 1, ls="-" if i < 7 else "--", label=shown)
        ax.set_xlabel("step")
        ax.set_ylabel("learning rate")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="predicted final loss")
    return style.save(fig, path)


def collapse(path: Any, curves: list, options: Any) -> Any:
    """Losses and normalised losses against the share of the run, one colour a group."""
    from analysis.curves.normalised import finished, grouped, normalised

    done = [c for c in curves if finished(c)]
    groups = grouped(done, options.groups)
    fig = style.figure(style.PAGE, 2.9)
    with style.style():
        raw, own = fig.subplots(1, 2)
        top = 1.0
        for colour, (key, members) in zip(style.ordered(len(groups)), groups.items(), strict=True):
            said = ", ".join(f"{name} {style.short(value)}" for name, value in key) or "all"
            for i, curve in enumerate(members):
                u, value = normalised(curve, options.smooth)
                raw.plot(u, value * curve.losses[-1], color=colour, lw=0.9)
                own.plot(u, value, color=colour, lw=0.9, label=said if not i else None)
                top = max(top, float(np.interp(0.1, u, value)))
        for ax in (raw, own):
            ax.set_xlabel("share of the run")
        ends = [c.losses[-1] for c in done]
        raw.set_ylim(min(ends) * 0.97, max(ends) * top * 1.03)
        raw.set_ylabel("loss (nats per token)")
        own.set_ylim(0.98, 1 + 1.15 * (top - 1))
        own.set_ylabel("loss / final loss")
        own.axvline(options.fraction, color="0.6", lw=0.7, ls=":")
        if len(groups) <= 10:
            own.legend()
    return style.save(fig, path)


def _few_steps(ax: Any) -> None:
    """Four ticks at most, 20k for 20,000: narrow panels have no room for more."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _name(curve: Any) -> str:
    said = curve.given.get("schedule")
    return f"{curve.run_id} {said}" if isinstance(said, str) else str(curve.run_id)

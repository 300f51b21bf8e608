"""The plots of benches/README.md."""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def save(figure, axes, path):
    axes.grid(True, alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def throughput(curves, path):
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, points in curves.items():
        axes.plot(*zip(*points), marker="o", label=name)
    axes.set(xscale="log", xlabel="agents", ylabel="requests a second", title="Throughput by agents, 64 connections")
    axes.set_ylim(bottom=0)
    save(figure, axes, path)


def latency(curves, path):
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for database, points in curves.items():
        rates, p50, p99 = zip(*points)
        [line] = axes.plot(rates, p99, marker="o", label=f"p99, {database}")
        axes.plot(rates, p50, marker="o", linestyle="--", color=line.get_color(), label=f"p50, {database}")
    axes.set(xlabel="heartbeats a second", ylabel="milliseconds", title="Latency of heartbeats by load, 10,000 agents")
    axes.set_ylim(bottom=0)
    save(figure, axes, path)

"""k-means on vectors: Lloyd's algorithm from a fixed sample, on at most `SAMPLE` points a cluster.

min over centroids C and codes z of  sum_i ||x_i - C[z_i]||^2
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 12
SAMPLE = 32
ROWS = 8192
"""Points that are compared with all centroids at a time."""


def nearest_centroid(points: Tensor, centroids: Tensor) -> Tensor:
    """Index (int64) of the nearest centroid of every point: points (m, d), centroids (k, d)."""
    half = centroids.square().sum(1) / 2
    found = [torch.argmax(torch.addmm(-half, part, centroids.T), 1) for part in points.split(ROWS)]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def distinct(points: Tensor, most: int) -> Tensor | None:
    """The different points if there are at most `most`."""
    if len(points) > 4 * most and len(torch.unique(points[: 4 * most], dim=0)) > most:
        return None  # spares sorting all of them
    found = torch.unique(points, dim=0)
    return found if len(found) <= most else None


def cluster(points: Tensor, count: int) -> Tensor:
    """Centroids (at most `count`, d) of points (m, d); the points themselves where they are no more than that."""
    exact = distinct(points, count)
    if exact is not None:
        return exact
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(points), generator=generator)
    points = points[order[: max(SAMPLE * count, 4096)]]
    centroids: Tensor = torch.unique(points[: 4 * count], dim=0)
    picked = torch.randperm(len(centroids), generator=generator)[:count]
    centroids = centroids[picked]
    for _ in range(ITERATIONS):
        codes = nearest_centroid(points, centroids)
        sizes = torch.bincount(codes, minlength=len(centroids)).unsqueeze(1)
        sums = torch.zeros_like(centroids).index_add_(0, codes, points)
        means = sums / sizes.clamp_min(1)
        empty = (sizes == 0).squeeze(1)
        if bool(empty.any()):
            # An empty cluster takes a point that its own centroid serves worst.
            far = (points - centroids[codes]).square().sum(1).topk(int(empty.sum())).indices
            means[empty] = points[far]
        centroids = means
    return centroids

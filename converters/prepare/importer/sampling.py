"""Sampling at places that need not lie on the grid."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from converters.prepare.importer.registry import Call, operator


@operator("GridSample", since=16)
def grid_sample(call: Call, value: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        call.get("mode", "linear"), call.get("mode", "linear")
    )
    if value.dim() == 5 and mode == "bicubic":
        raise call.unsupported("cubic volumes")
    return functional.grid_sample(
        value, grid, mode, call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0))
    )


@operator("AffineGrid", since=20, fixed=(1,))
def affine_grid(call: Call, theta: Tensor, *_: Any) -> Tensor:
    return functional.affine_grid(
        theta, call.needed_ints(1), align_corners=bool(call.get("align_corners", 0))
    )


@operator("RoiAlign", since=10)
def roi_align(call: Call, value: Tensor, regions: Tensor, batches: Tensor) -> Tensor:
    """Bilinear samples of each bin, averaged or their largest. Raises: UnsupportedOperatorsError."""
    height, width = call.get("output_height", 1), call.get("output_width", 1)
    count = call.get("sampling_ratio", 0)
    if count <= 0:
        raise call.unsupported("sampling_ratio = 0, whose number of samples depends on data")
    half = call.opset >= 16 and call.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    corners = regions * call.get("spatial_scale", 1.0) - (0.5 if half else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    extent = extent if half else torch.clamp(extent, min=1.0)
    steps_y = torch.from_numpy(((np.arange(height * count) + 0.5) / (height * count)).astype(np.float32))
    steps_x = torch.from_numpy(((np.arange(width * count) + 0.5) / (width * count)).astype(np.float32))
    rows = corners[:, 1:2] + extent[:, 1:2] * steps_y
    columns = corners[:, 0:1] + extent[:, 0:1] * steps_x
    weights_y, weights_x = _shares(rows, value.shape[2]), _shares(columns, value.shape[3])
    taken = torch.index_select(value, 0, batches.to(torch.int64))
    bins = (*taken.shape[:2], height, count, width, count)
    if call.get("mode", "avg") == "avg":
        samples = torch.matmul(
            torch.matmul(weights_y.unsqueeze(1), taken), weights_x.unsqueeze(1).transpose(2, 3)
        )
        return samples.reshape(bins).mean([3, 5])
    raise call.unsupported("mode = 'max'")


def _shares(places: Tensor, size: int) -> Tensor:
    """Bilinear shares of `size` entries at each place, (…, places, size); none more than one entry outside."""
    inside = ((places >= -1) & (places <= size)).to(places.dtype).unsqueeze(-1)
    clamped = torch.clamp(places, 0, size - 1).unsqueeze(-1)
    return torch.clamp(1 - (clamped - torch.arange(size, dtype=places.dtype)).abs(), min=0) * inside

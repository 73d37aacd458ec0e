# %% [markdown]
# # Cells in napari
#
# Segments a field of nuclei and prepares the layers that napari shows: the picture, and the cells as labels with a
# table of measurements. Without napari the layers are only checked.
#
# From the repository root: `python examples/cells_in_napari.py`, with `--show` to look at them.

# %%
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np

from drawn_nuclei import field
from isocenter import SyncService

# %% [markdown]
# A field of nuclei; any array HxW or HxWx3 will do, or the path of a file.

# %%
pixels, drawn = field(seed=11)

with SyncService("models") as service:
    answer = service.segment_image(pixels, model="nuclei-segmenter")
print(f"{answer.count} cells, {drawn.max()} were drawn")

# %% [markdown]
# The table has a row a cell; `index` is the number of the cell in the label image. Where the file knows the size of its
# pixels, both layers are shown in micrometres.

# %%
cells = answer.labels.labels
table: dict[str, list[Any]] = {
    "index": [each.label for each in answer.quantities],
    "area (px)": [each.area_px for each in answer.quantities],
    "eccentricity": [round(each.eccentricity, 3) for each in answer.quantities],
    "mean intensity": [round(each.mean_intensity[0], 1) for each in answer.quantities],
    "confidence": answer.labels.confidences.round(3).tolist(),
}
scale = answer.pixel_size_um or (1.0, 1.0)
LAYERS: list[tuple[Any, dict[str, Any], str]] = [
    (pixels, {"name": "field", "scale": scale}, "image"),
    (cells, {"name": "cells", "scale": scale, "features": table}, "labels"),
]

# %% [markdown]
# Checked: labels lie on the picture, are numbered without gaps, and the table is about them.

# %%
assert cells.shape == pixels.shape
assert cells.dtype == np.uint32
assert table["index"] == list(range(1, answer.count + 1)) == np.unique(cells[cells > 0]).tolist()
assert table["area (px)"] == np.bincount(cells.ravel())[1:].tolist()
met = np.unique(cells[drawn > 0])
assert np.count_nonzero(met) >= 0.8 * drawn.max()
print("layers:", ", ".join(f"{options['name']} ({kind})" for _, options, kind in LAYERS))

# %%
if "--show" in sys.argv:
    if find_spec("napari") is None:
        sys.exit('napari is not installed: pip install "napari[all]"')
    import napari

    viewer = napari.Viewer()
    for data, options, kind in LAYERS:
        getattr(viewer, f"add_{kind}")(data, **options)
    napari.run()

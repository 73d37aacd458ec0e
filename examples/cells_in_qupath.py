# %% [markdown]
# # Cells in QuPath
#
# Segments a field of nuclei and writes what QuPath opens: the picture, the cells as GeoJSON detections with their
# measurements, and a script that imports them. QuPath itself is not needed to run this.
#
# From the repository root: `python examples/cells_in_qupath.py`, or cell by cell in an editor that knows `# %%`.

# %%
import json
from pathlib import Path

import cv2
import numpy as np

from drawn_nuclei import field
from isocenter import SyncService

OUT = Path("cells-out")
OUT.mkdir(exist_ok=True)

# %% [markdown]
# A field of nuclei. Put a file of your own here: `PICTURE = Path("plate-1.tif")`.

# %%
PICTURE = OUT / "field.png"
pixels, drawn = field(seed=7)
cv2.imwrite(str(PICTURE), pixels)

# %% [markdown]
# The same answer as from `POST /segment` and `isocenter segment`.

# %%
with SyncService("models") as service:
    answer = service.segment_image(PICTURE, model="nuclei-segmenter")
print(f"{answer.count} cells, {drawn.max()} were drawn")

# %% [markdown]
# QuPath takes the polygons in pixels of the full image. Open the picture in QuPath and drop the GeoJSON on it, or run
# the script in *Automate > Script editor*.

# %%
CELLS = OUT / "field.geojson"
CELLS.write_bytes(answer.render("geojson").body)
SCRIPT = OUT / "import_cells.groovy"
where = CELLS.resolve().as_posix().replace("\\", r"\\").replace("'", r"\'")  # a $ means nothing between single quotes
SCRIPT.write_text(
    f"importObjectsFromFile('{where}')\nprintln getDetectionObjects().size() + ' cells'\n",
    encoding="utf-8",
)
print(f"open {PICTURE} in QuPath, then run {SCRIPT}")

# %% [markdown]
# What is in the file, checked: one detection a cell, closed rings, and areas that are those of the cells.

# %%
features = json.loads(CELLS.read_bytes())["features"]
assert len(features) == answer.count
for feature, quantities in zip(features, answer.quantities, strict=True):
    assert feature["properties"]["objectType"] == "detection"
    assert feature["properties"]["measurements"]["Area px^2"] == quantities.area_px
    shape = feature["geometry"]
    for polygon in shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]:
        for ring in polygon:
            assert ring[0] == ring[-1]
            assert len(ring) >= 5

# %% [markdown]
# And the cells are those that were drawn: nearly every one of them is met by a cell of its own.

# %%
met = {int(label) for label in np.unique(answer.labels.labels[drawn > 0]) if label}
assert len(met) >= 0.8 * drawn.max(), f"{len(met)} of {drawn.max()}"
areas = [feature["properties"]["measurements"]["Area px^2"] for feature in features]
print(f"median area {np.median(areas):.0f} px, from {min(areas)} to {max(areas)}")

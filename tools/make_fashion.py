"""Draw the embedded set `fashion` from Fashion-MNIST: 600 training and 200 test images of each of its ten classes.

    apt install dataset-fashion-mnist
    python tools/make_fashion.py            # writes src/backlight/assets/fashion/{train,test}.parquet, about 10 seconds

The layout is the Hub's: `image` (a struct of PNG bytes and a path), `label`, and the class names in the schema's
`huggingface` metadata. The path is the image's number in the original file. The same seed gives the same images.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from backlight.data.sampling import stratified

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).parents[1] / "src/backlight/assets/fashion"
SPLITS = {"train": ("train", 600), "test": ("t10k", 200)}  # split: (the source's prefix, images a class)
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SEED = 0


def main() -> None:
    for split, (prefix, per_class) in SPLITS.items():
        images, labels = source_arrays(prefix)
        table = hub_table(images, labels, stratified(labels, 10 * per_class, SEED))
        # PNG does not compress twice; zstd is for the labels and paths
        pq.write_table(table, TARGET / f"{split}.parquet", compression="zstd", row_group_size=1000, write_statistics=False)


def source_arrays(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split, out of the IDX files.  Shapes: (N, 28, 28) uint8 and (N,) uint8."""
    images = gzip.decompress((SOURCE / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((SOURCE / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def hub_table(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> pa.Table:
    """The rows as the `datasets` library would write them.  Shapes: (N, 28, 28), (N,), (M,) -> M rows."""
    cells = [{"bytes": png(images[row]), "path": f"{row:05d}.png"} for row in rows]
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return pa.table({"image": cells, "label": labels[rows].astype(np.int64)}, schema=schema)


def png(image: np.ndarray) -> bytes:
    """One grey image as the smallest PNG that Pillow writes.  Shapes: (28, 28) uint8 -> bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()

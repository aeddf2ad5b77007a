"""Make the captured files that the gallery reads, with ``python docs/captures/make.py``.

They are of `zoo/rope-0`, a model of 1.4 million weights, and small: few sequences, short ones, and
only what the examples read.
"""

from pathlib import Path

import posprobe

HERE = Path(__file__).parent
SCORES = ("normalizer", "sink_score", "offset_score", "remasked_normalizer", "remasked_body")
FILES = {
    "shifted": {
        "design": "shifted", "n": 10, "length": 64, "window": 16, "prefixes": (1, 12, 48),
        "quantities": SCORES, "offsets": (1, 4),
    },
    "natural": {
        "design": "natural", "n": 40, "length": 32, "window": 16, "dtype": "float16",
        "quantities": ("normalizer", "sink_score", "residual"),
        "residual_layers": "3", "residual_positions": "all/2",
    },
}  # fmt: skip


def main() -> None:
    """Capture each file, and print its size."""
    model = posprobe.load_model("zoo/rope-0")
    for name, options in FILES.items():
        path = HERE / f"{name}.h5"
        posprobe.capture(model, path, overwrite=True, text="english", **options).close()
        print(f"{path.name}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""Where the models and photographs in the box are: etc/ of a checkout, flow/box/ of an installed package."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOX = ROOT / "etc" if (ROOT / "etc" / "photos").is_dir() else ROOT / "flow" / "box"

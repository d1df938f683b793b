"""Photos for the tests of `anyclass classify`."""

import os
from pathlib import Path
from typing import Final

from PIL import Image

KEY: Final = "0123456789abcdef0123"
LABELS: Final = ("--labels", "red,green")
MANY: Final = 30


def write_photos(folder: Path) -> None:
    """Write photos in two folders, one of them broken, with hidden and other files, and a folder of MANY photos."""
    for name, colour in {"b/2.png": "red", "b/10.JPG": "red", "a.png": "lime", "c.bmp": "lime"}.items():
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), colour).save(folder / "photos" / name)
    (folder / "photos" / "b" / "broken.png").write_bytes((folder / "photos" / "a.png").read_bytes()[:50])
    (folder / "photos" / "notes.txt").write_text("not a photo")
    (folder / "photos" / ".trash").mkdir()
    (folder / "photos" / ".trash" / "old.png").write_bytes(b"")
    (folder / "photos" / ".hidden.png").write_bytes(b"")
    (folder / "photos" / "loop").symlink_to(folder / "photos", target_is_directory=True)
    (folder / "empty").mkdir()
    (folder / "many").mkdir()
    for number in range(MANY):
        Image.new("RGB", (8, 8), "red" if number % 2 else "lime").save(folder / "many" / f"{number:02}.png")


def below(paths: list[str], folder: Path) -> list[str]:
    """Return the paths relative to the folder of photos."""
    return [os.path.relpath(path, folder / "photos") for path in paths]

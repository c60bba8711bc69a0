"""Take the picture of a report, with headless Chromium.

    python docs/make_report.py RUN

RUN is the folder that `worldmodel eval out=RUN` wrote. Writes docs/images/report.png: the films and
the first plots of its page.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

OUT = Path(__file__).parent / "images" / "report.png"
WIDTH, HEIGHT = 1000, 1290
STYLE = """nav, #s0, header .tiles, video::-webkit-media-controls { display:none !important }
  video { max-width:520px !important }"""
CHROMIUM = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
COLOURS = 255  # enough for a page, and a fifth of the size


def main() -> None:
    """Write the picture."""
    page = (Path(sys.argv[1]) / "index.html").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        file, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        file.write_text(page.replace("</head>", f"<style>{STYLE}</style></head>"), encoding="utf-8")
        command = [*CHROMIUM, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}"]
        subprocess.run([*command, file.as_uri()], check=True, timeout=120)
        Image.open(shot).convert("RGB").quantize(COLOURS).save(OUT, optimize=True)


if __name__ == "__main__":
    main()

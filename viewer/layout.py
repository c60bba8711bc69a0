"""Where things stand in a window of any size. Pure arithmetic on rectangles."""

from dataclasses import dataclass

from pygame import Rect

from worldmodel.viewer.window import BASE


@dataclass(frozen=True)
class Layout:
    """Rectangles in window pixels; those that find no room are empty.

    Attributes:
        unit: pixels per unit of length; type and margins grow with the window.
        area: the room for the picture, or for several.
        picture: the imagined frame.
        panel: keys and figures, to the right or below.
        sent: the line with the text sent to the model.
        box: the text box; in a small window the same line as `sent`.
        timeline: the row of thumbnails.
    """

    unit: float
    area: Rect
    picture: Rect
    panel: Rect
    sent: Rect
    box: Rect
    timeline: Rect

    def px(self, units: float) -> int:
        """Return `units` in pixels, at least 1."""
        return max(1, round(units * self.unit))

    def thumb_at(self, index: int) -> Rect:
        """Return the place of thumbnail `index`."""
        side = self.timeline.height
        step = side + self.px(4)
        return Rect(self.timeline.x + index * step, self.timeline.y, side, side)

    @property
    def num_thumbs(self) -> int:
        """How many thumbnails fit."""
        if not self.timeline.height:
            return 0
        gap = self.px(4)
        return max(0, (self.timeline.width + gap) // (self.timeline.height + gap))


def make_layout(
    size: tuple[int, int], aspect: float = 1.0, smooth: bool = True, frame_px: int = 64
) -> Layout:
    """Return the layout of a window.

    Args:
        size: width and height of the window, in pixels.
        aspect: width of a frame divided by its height.
        smooth: False to enlarge by whole factors only, so that pixels stay square.
        frame_px: height of a frame in its own pixels.
    """
    width, height = max(1, size[0]), max(1, size[1])
    unit = min(3.0, max(0.8, min(width / BASE[0], height / BASE[1])))
    unit = round(unit * 20) / 20  # few different type sizes

    def px(units: float) -> int:
        return max(1, round(units * unit))

    roomy = min(width, height) >= px(400)
    margin, gap = (px(24), px(12)) if roomy else (px(8), px(6))
    wide = width >= px(640)
    tall = height >= px(520)
    panel_w = px(296) if wide else 0
    inner = Rect(margin, margin, max(1, width - 2 * margin), max(1, height - 2 * margin))
    left_w = max(1, inner.width - (panel_w + margin if wide else 0))

    bottom = inner.bottom
    timeline_h = px(46) if tall else 0
    timeline = Rect(inner.x, bottom - timeline_h, left_w, timeline_h)
    bottom = timeline.y - (gap if tall else 0)
    box = Rect(inner.x, bottom - px(40), left_w, px(40))
    sent = Rect(inner.x, box.y - px(8) - px(26), left_w, px(26))
    if height < px(280):  # one line for both; what is being typed covers what was sent
        box = sent = Rect(inner.x, bottom - px(30), left_w, px(30))
    area = Rect(inner.x, inner.y, left_w, max(1, sent.y - gap - inner.y))
    panel = (
        Rect(inner.right - panel_w, inner.y, panel_w, inner.height) if wide else Rect(0, 0, 0, 0)
    )

    picture_h = min(area.height, round(area.width / aspect))
    spare = area.height - picture_h - gap
    if not wide and spare >= px(260):  # a tall window has the panel below the picture
        panel = Rect(inner.x, area.y + picture_h + gap, left_w, spare)
        area.height = picture_h
    if not smooth and picture_h > frame_px:
        picture_h -= picture_h % frame_px
    picture = Rect(0, 0, max(1, round(picture_h * aspect)), max(1, picture_h))
    picture.center = area.center
    return Layout(unit, area, picture, panel, sent, box, timeline)


def grid(
    area: Rect, count: int, aspect: float, gap: int, caption: int = 0, most_rows: int = 9
) -> list[Rect]:
    """Return places for `count` frames in rows, as large as they can be in `area`.

    Args:
        area: the room for all.
        count: of frames.
        aspect: width of a frame divided by its height.
        gap: pixels between them.
        caption: pixels that are free below each.
        most_rows: there are no more rows than that.
    """
    best: tuple[int, int, int] = (0, count, 1)  # height of a frame, columns, rows
    for columns in range(1, count + 1):
        rows = -(-count // columns)
        if rows > most_rows:
            continue
        width = (area.width - gap * (columns - 1)) / columns
        height = min((area.height - gap * (rows - 1)) / rows - caption, width / aspect)
        best = max(best, (int(height), columns, rows))
    height, columns, rows = max(1, best[0]), best[1], best[2]
    width = max(1, round(height * aspect))
    left = area.centerx - (columns * width + (columns - 1) * gap) // 2
    top = area.centery - (rows * (height + caption) + (rows - 1) * gap) // 2
    places = []
    for index in range(count):
        row, column = divmod(index, columns)
        at = (left + column * (width + gap), top + row * (height + caption + gap))
        places.append(Rect(at, (width, height)))
    return places

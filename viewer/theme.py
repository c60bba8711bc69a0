"""The viewer's colours: a calm dark slate, amber for what hands do, teal for what is said."""

Colour = tuple[int, int, int]

BACK: Colour = (14, 17, 22)
SURFACE: Colour = (23, 27, 34)
RAISED: Colour = (33, 39, 48)
EDGE: Colour = (47, 54, 66)
TEXT: Colour = (230, 234, 240)
MUTED: Colour = (146, 156, 171)
FAINT: Colour = (98, 108, 123)
AMBER: Colour = (242, 183, 98)
TEAL: Colour = (108, 201, 190)
GREEN: Colour = (150, 205, 118)
RED: Colour = (235, 107, 99)

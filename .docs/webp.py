"""Let pymdownx.b64 embed WebP, the format of the stored figures, which it does not know."""

from pymdownx import b64

b64.file_types[(".webp",)] = "image/webp"

"""The zoo: small networks of every kind that a user may bring, and what must be found in each."""

from __future__ import annotations

from zoo_case import Case
from zoo_images import IMAGES
from zoo_published import PUBLISHED
from zoo_sequences import SEQUENCES

ZOO: dict[str, Case] = {case.name: case for case in (*IMAGES, *SEQUENCES, *PUBLISHED)}

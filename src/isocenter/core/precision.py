"""In which numbers a model computes."""

from typing import Literal, TypeAlias, get_args

Precision: TypeAlias = Literal["fp32", "tf32", "bf16", "fp16", "int8"]
"""`tf32` is fp32 whose products are rounded to 10 bits of mantissa; `int8` has fp32 at the edges."""

REFERENCE: Precision = "fp32"
"""What every other precision is measured against."""

PRECISIONS: tuple[str, ...] = get_args(Precision)

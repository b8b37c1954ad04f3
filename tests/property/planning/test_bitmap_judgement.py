"""A bitmap is called sound when, and only when, every write since it was made must stand in it."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.planning import BitmapHealth, judge_bitmap


@dataclass(frozen=True, slots=True)
class Bitmap:
    in_use: bool
    recording: bool


LAYERS = st.lists(st.one_of(st.none(), st.builds(Bitmap, st.booleans(), st.booleans())), max_size=5).map(tuple)


def _records_all(layers: tuple[Bitmap | None, ...]) -> bool:
    held = [bitmap for bitmap in layers if bitmap is not None]
    unbroken = layers[: len(held)] == tuple(held)
    return bool(held) and unbroken and all(bitmap.recording and not bitmap.in_use for bitmap in held)


@given(LAYERS)
def test_of_a_vm_that_is_off_the_images_decide(layers: tuple[Bitmap | None, ...]) -> None:
    judged = judge_bitmap(layers, valid_in_qemu=None)
    assert (judged is BitmapHealth.SOUND) is _records_all(layers)


@given(LAYERS, st.booleans())
def test_of_a_vm_that_runs_libvirts_word_decides(layers: tuple[Bitmap | None, ...], valid: bool) -> None:
    judged = judge_bitmap(layers, valid_in_qemu=valid)
    assert (judged is BitmapHealth.SOUND) is valid


@given(LAYERS, st.sampled_from((None, False)))
def test_what_is_said_of_a_bitmap_that_is_no_good_is_so(layers: tuple[Bitmap | None, ...], valid: bool | None) -> None:
    held = [bitmap for bitmap in layers if bitmap is not None]
    match judge_bitmap(layers, valid_in_qemu=valid):
        case BitmapHealth.UNKNOWN:
            assert layers == ()
        case BitmapHealth.MISSING:
            assert layers
            assert not held
        case BitmapHealth.GAP:
            assert held
            assert layers[: len(held)] != tuple(held)
        case BitmapHealth.NOT_RECORDING:
            assert not all(bitmap.recording for bitmap in held)
        case BitmapHealth.INCONSISTENT:
            assert valid is False or any(bitmap.in_use for bitmap in held)
        case judged:
            assert judged is BitmapHealth.SOUND

"""Masks of images: what each kind sees, for every size."""

import pytest
import torch

import sdegen as sg

KINDS = ("wide", "outer", "thin", "half", "pixels", "rows")


@pytest.mark.parametrize("shape", [(28, 28), (3, 32, 24), (1, 7, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_see_a_part_the_same_in_every_channel(kind, shape):
    mask = sg.data.mask(kind, shape)
    assert mask.dtype == torch.bool and mask.shape == shape and bool(mask.any()) and not bool(mask.all())
    assert bool((mask == mask.reshape(-1, *shape[-2:])[0]).all())
    sg.Observation.mask(mask)


def test_the_kinds_are_what_they_say():
    of = {kind: sg.data.mask(kind, (28, 28)) for kind in KINDS}
    assert torch.equal(of["wide"], ~of["outer"]) and int(of["outer"].sum()) == 14 * 14
    assert bool(of["half"][:, :14].all()) and not bool(of["half"][:, 14:].any())
    assert int(of["pixels"].sum()) == 14 * 14 and int(of["rows"].sum()) == 14 * 28
    assert 0.02 < float((~of["thin"]).double().mean()) < 0.3


def test_other_kinds_and_shapes_are_refused():
    for kind, shape in (("left", (4, 4)), ("wide", (4,)), ("wide", (1, 1, 4, 4)), ("wide", (0, 4))):
        with pytest.raises(sg.InvalidInputError):
            sg.data.mask(kind, shape)

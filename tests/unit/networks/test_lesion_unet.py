"""The lesion network answers on the grid that it is given, and begins and ends as its docstring says."""

import pytest

torch = pytest.importorskip("torch")

from isocenter.networks.lesion_unet import LesionUNet3d  # noqa: E402 - torch first

SIDES = (32, 16, 48)


def test_it_answers_every_voxel_with_every_class() -> None:
    network = LesionUNet3d(3).eval()

    with torch.inference_mode():
        assert network(torch.zeros(2, 1, *SIDES)).shape == (2, 3, *SIDES)


def test_an_item_does_not_depend_on_its_batch_mates() -> None:
    network = LesionUNet3d().eval()
    batch = torch.randn(2, 1, *SIDES, generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        assert torch.allclose(network(batch)[:1], network(batch[:1]), atol=1e-5)


def test_sides_that_are_no_multiples_of_16_do_not_fit() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError):
        LesionUNet3d().eval()(torch.zeros(1, 1, 24, 32, 32))

"""The networks of nnU-Net have its names and shapes; what is listed twice is read once."""

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")

from isocenter.networks.plain_conv_unet import OfSlices, PlainConvUNet, ResidualEncoderUNet, own_names  # noqa: E402

PARTS: dict[str, Any] = {
    "channels": 1, "classes": 2, "widths": [4, 8], "kernels": [[3, 3], [3, 3]], "strides": [[1, 1], [2, 2]],
    "decoder_convs": [1], "bias": True, "norm": "instance", "norm_options": {"affine": True},
    "nonlinearity": "LeakyReLU", "nonlinearity_options": {}, "nonlinearity_first": False,
}  # fmt: skip

# As dynamic_network_architectures 0.4.4 has them for the same arguments, but for those that it lists again.
PLAIN = {
    "encoder.stages.0.0.convs.0.conv.weight": (4, 1, 3, 3),
    "encoder.stages.0.0.convs.0.norm.weight": (4,),
    "encoder.stages.1.0.convs.0.conv.weight": (8, 4, 3, 3),
    "encoder.stages.1.0.convs.1.conv.weight": (8, 8, 3, 3),
    "decoder.stages.0.convs.0.conv.weight": (4, 8, 3, 3),
    "decoder.transpconvs.0.weight": (8, 4, 2, 2),
    "decoder.seg_layers.0.weight": (2, 4, 1, 1),
}
RESIDUAL = {
    "encoder.stem.convs.0.conv.weight": (4, 1, 3, 3),
    "encoder.stages.0.blocks.0.conv1.conv.weight": (4, 4, 3, 3),
    "encoder.stages.0.blocks.0.conv2.norm.bias": (4,),
    "encoder.stages.1.blocks.0.skip.1.conv.weight": (8, 4, 1, 1),
    "encoder.stages.1.blocks.1.conv2.conv.weight": (8, 8, 3, 3),
    "decoder.transpconvs.0.bias": (4,),
}


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (lambda: PlainConvUNet(convs=[1, 2], **PARTS), PLAIN),
        (lambda: ResidualEncoderUNet(blocks=[1, 2], **PARTS), RESIDUAL),
    ],
    ids=["plain", "residual"],
)
def test_parameters_have_the_names_of_nnunet(network: Any, names: dict[str, tuple[int, ...]]) -> None:
    state = network().state_dict()

    assert {name: tuple(state[name].shape) for name in names} == names
    assert network()(torch.zeros(3, 1, 8, 16)).shape == (3, 2, 8, 16)


def test_slices_are_pictures() -> None:
    network = PlainConvUNet(convs=[1, 1], **PARTS).eval()
    volume = torch.randn(2, 1, 1, 8, 8)

    with torch.no_grad():
        assert torch.equal(OfSlices(network)(volume)[:, :, 0], network(volume[:, :, 0]))


def test_what_is_listed_again_is_read_once() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    listed = {"encoder.a.conv.weight": one, "encoder.a.all_modules.0.weight": one, "decoder.encoder.a.conv.weight": one}

    assert own_names(listed) == {"encoder.a.conv.weight": one}
    for again in ("encoder.a.all_modules.0.weight", "decoder.encoder.a.conv.weight"):
        with pytest.raises(ValueError, match="has another value than encoder"):
            own_names(listed | {again: two})


@pytest.mark.parametrize(
    "changes", [{"widths": [4]}, {"norm": "layer"}, {"nonlinearity": "eval"}, {"decoder_convs": [1, 1]}]
)
def test_what_is_not_known_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"stages|axes"):
        PlainConvUNet(convs=[1, 1], **PARTS | changes)

"""Which networks there are. torch is imported when one is built."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from isocenter.core.errors import MissingExtra

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEntry:
    """One network: where it is written, and what it is exported as unless somebody says otherwise."""

    name: str
    module: str
    """Of this package."""
    class_name: str
    title: str
    paper: str
    task: Literal["classification", "segmentation"]
    input_shape: tuple[int, ...]
    """One item, without a batch axis: channels, then [height, width] or [depth, height, width]."""
    small_shape: tuple[int, ...]
    """The same, as small as tests and settling need it."""
    multiple: int
    """Every side must be a multiple of this."""
    labels: tuple[str, ...]
    """One an output; the first of `softmax` masks is the background."""
    activation: Literal["softmax", "sigmoid"]
    max_batch_size: int
    """Of the exported model: what a CPU server answers within a request's time."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of its class."""
    renamed: str = ""
    """A function of its module that turns the names of published weights into ours."""

    @property
    def input_name(self) -> str:
        """What its input tensor is called once it is exported."""
        return "image" if len(self.input_shape) == 3 else "volume"

    @property
    def fully_convolutional(self) -> bool:
        """Whether it takes any sides that are multiples of `multiple`, and answers with a mask of the same sides."""
        return self.task == "segmentation"

    def build(self, classes: int | None = None) -> "nn.Module":
        """The network with torch's usual random weights, in training mode; as many classes as labels if none is said.

        Raises:
            MissingExtra: torch is not installed.
        """
        found: nn.Module = getattr(self._imported(), self.class_name)(classes or len(self.labels), **self.options)
        return found

    def own_names(self, state: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Tensors of published weights under the names that this network has for them."""
        if not self.renamed:
            return dict(state)
        rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = getattr(self._imported(), self.renamed)
        return rename(state)

    def _imported(self) -> Any:
        if importlib.util.find_spec("torch") is None:
            raise MissingExtra(
                f'network {self.name} needs torch, which is not installed: pip install "isocenter[torch]"'
            )
        return importlib.import_module(f"isocenter.networks.{self.module}")


_BRAIN_MRI = ("Glioma", "Meningioma", "Pituitary", "No Tumor")
_PICTURE: dict[str, Any] = {
    "task": "segmentation",
    "input_shape": (3, 1024, 1024),
    "labels": ("cell",),
    "activation": "sigmoid",
}

NETWORKS: dict[str, NetworkEntry] = {
    entry.name: entry
    for entry in (
        NetworkEntry(
            name="resnet50",
            module="resnet50",
            class_name="ResNet50",
            title="ResNet-50",
            paper="He et al. 2016, arXiv:1512.03385",
            task="classification",
            input_shape=(3, 224, 224),
            small_shape=(3, 64, 64),
            max_batch_size=16,
            multiple=1,
            labels=_BRAIN_MRI,
            activation="softmax",
            renamed="renamed",
        ),
        NetworkEntry(
            name="hrnet-w18",
            module="hrnet",
            class_name="HRNet",
            title="HRNetV2-W18 for masks",
            paper="Wang et al. 2020, arXiv:1908.07919",
            small_shape=(3, 64, 64),
            max_batch_size=4,
            multiple=32,
            options={"width": 18},
            **_PICTURE,
        ),
        NetworkEntry(
            name="hrnet-w32",
            module="hrnet",
            class_name="HRNet",
            title="HRNetV2-W32 for masks",
            paper="Wang et al. 2020, arXiv:1908.07919",
            small_shape=(3, 64, 64),
            max_batch_size=2,
            multiple=32,
            options={"width": 32},
            **_PICTURE,
        ),
        NetworkEntry(
            name="cbam-resunet",
            module="cbam_resunet",
            class_name="CbamResUNet",
            title="CBAM-ResUNet",
            paper="Zhang et al. 2018, arXiv:1711.10684; Woo et al. 2018, arXiv:1807.06521",
            small_shape=(3, 64, 64),
            max_batch_size=2,
            multiple=8,
            **_PICTURE,
        ),
        NetworkEntry(
            name="unet2d",
            module="unet2d",
            class_name="UNet2d",
            title="U-Net",
            paper="Ronneberger et al. 2015, arXiv:1505.04597",
            small_shape=(3, 64, 64),
            max_batch_size=2,
            multiple=16,
            **_PICTURE,
        ),
        NetworkEntry(
            name="unet3d",
            module="unet3d",
            class_name="UNet3d",
            title="3-D U-Net, light",
            paper="Falk et al. 2019, doi:10.1038/s41592-018-0261-2",
            task="segmentation",
            input_shape=(1, 96, 96, 96),
            small_shape=(1, 32, 32, 32),
            max_batch_size=2,
            multiple=16,
            labels=("background", "tumor"),
            activation="softmax",
            renamed="renamed",
        ),
        NetworkEntry(
            name="unet3d-cicek",
            module="unet3d",
            class_name="CicekUNet3d",
            title="3-D U-Net",
            paper="Cicek et al. 2016, arXiv:1606.06650",
            task="segmentation",
            input_shape=(1, 96, 96, 96),
            small_shape=(1, 16, 16, 16),
            max_batch_size=2,
            multiple=8,
            labels=("background", "tumor"),
            activation="softmax",
            options={"channels": 1},
        ),
        NetworkEntry(
            name="slice-resnet",
            module="slice_resnet",
            class_name="SliceResNet",
            title="Slice classifier of the demonstration model",
            paper="after He et al. 2016, arXiv:1512.03385, and Hu et al. 2018, arXiv:1709.01507",
            task="classification",
            input_shape=(3, 224, 224),
            small_shape=(3, 64, 64),
            max_batch_size=16,
            multiple=32,
            labels=_BRAIN_MRI,
            activation="softmax",
        ),
    )
}

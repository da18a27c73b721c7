"""All-convolutional networks that end as CLEAR wants it: one kernel for each class, then global average pooling."""

from torch import nn


class AllConvNet(nn.Module):
    """Convolution-ReLU-max-pool blocks, a last 1x1 convolution with one kernel for each class, global average pooling.

    Takes images (B, in_channels, H, W), returns scores (B, classes): S_c = mean_{x,y} z_L^c(x, y). All convolutions
    but the last are 3x3 and keep the size; every block but the last halves it. `channels` are the blocks' kernels.
    """

    def __init__(self, classes=10, in_channels=1, channels=(32, 64, 96)):
        super().__init__()
        self.config = {"classes": classes, "in_channels": in_channels, "channels": list(channels)}
        layers = []
        for before, after in zip((in_channels, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Conv2d(channels[-1], classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images):
        return self.head(self.features(images)).mean((2, 3))


class RadiomicSequencer(AllConvNet):
    """The deep radiomic sequencer of CLEAR-DR: an all-convolutional network for fundus photographs (B, 3, H, W).

    Scores are (B, 5), one for each grade of diabetic retinopathy. Because the last convolution is 1x1, the scores are
    an affine function of the radiomic sequence: S = W s + b.
    """

    def __init__(self, classes=5, in_channels=3, channels=(16, 32, 48, 64, 96)):
        super().__init__(classes, in_channels, channels)

    def sequence(self, images):
        """The radiomic sequence s (B, channels[-1]): the activation before the last convolution, averaged over x, y."""
        return self.features(images).mean((2, 3))

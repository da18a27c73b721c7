"""Class activation maps of the five likeliest classes of each image: `lib.methods.cam` against
TorchCAM and pytorch-grad-cam.

    pip install grad-cam    # pytorch-grad-cam is no dependency of the project
    python -m benchmarks.cam [--rounds 15] [--out FILE.json]

ResNet-18 with random weights, batch 8, 224x224. A plain forward pass, `lib.methods.cam` (maps of
all 1,000 classes, of which five are taken), TorchCAM's CAM (one class at a time from one forward
pass) and pytorch-grad-cam's GradCAM (a forward and a backward pass for each class) take turns in
one process; medians are compared. Up-sampling is left out where it can be: GradCAM includes it."""

import argparse
import statistics
import time
from pathlib import Path

import torch
import torchcam.methods
from torchvision import models

from benchmarks import record
from lib import notebook, paths
from lib.methods import cam


def methods(network, images):
    """Functions without arguments that make (8, 5, h, w) maps, by name; the plain forward pass
    first."""
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ModuleNotFoundError:
        raise SystemExit("pytorch-grad-cam is not installed: pip install grad-cam") from None

    extractor = torchcam.methods.CAM(network, "layer4", "fc", enable_hooks=False)
    gradients = GradCAM(network, [network.layer4])

    @torch.no_grad()
    def forward():
        return network(images).topk(5).indices

    def library():
        scores, maps = cam.class_activation_maps(network, images)
        return maps.gather(
            1, scores.topk(5).indices[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        )

    def torch_cam():
        extractor.enable_hooks()
        with torch.no_grad():
            scores = network(images)
        ranks = scores.topk(5).indices.T.tolist()
        maps = [extractor(classes, scores, normalized=False)[0] for classes in ranks]
        extractor.disable_hooks()
        return torch.stack(maps, 1)

    def grad_cam():
        ranks = forward().T.tolist()
        return [
            gradients(images, [ClassifierOutputTarget(c) for c in classes]) for classes in ranks
        ]

    return {
        "forward pass": forward,
        "lib.methods.cam": library,
        "TorchCAM CAM": torch_cam,
        "GradCAM": grad_cam,
    }


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=paths.BUILD / "benchmarks" / "cam.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    network, images = models.resnet18(weights=None).eval(), torch.rand(8, 3, 224, 224)
    runs = methods(network, images)
    torch.testing.assert_close(
        runs["lib.methods.cam"](), runs["TorchCAM CAM"](), rtol=1e-4, atol=1e-5
    )
    turns = [{name: seconds(run) for name, run in runs.items()} for _ in range(options.rounds + 1)][
        1:
    ]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in runs}
    for name, median in medians.items():
        print(
            f"{name:14} {1e3 * median:8.1f} ms  "
            f"{median / medians['forward pass']:6.2f} forward passes"
        )
    measured = {
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "versions": notebook.versions(),
        "seconds": medians,
    }
    record.write(options.out, measured)


if __name__ == "__main__":
    main()

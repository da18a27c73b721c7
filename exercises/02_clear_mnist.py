# %% [markdown]
# # Exercises to notebook 2 · CLEAR
#
# Five exercises on `notebooks/02_clear_mnist.ipynb`, sections 2.2 to 2.10. Write your answer in
# place of `None`, run the cell, then the check below it. Hints unfold one by one.
#
# The checks use small networks with random weights: nothing has to be trained.

# %%
import copy

import torch
from torch.nn import functional as F

from lib.methods import clear

import checks

checks.begin("02_clear_mnist")

# %% [markdown]
# ## 2.1 Four places, one reading (predict, 1 point, 4 minutes)
#
# On the way forward a ReLU got $a = (1, -1, 2, -3)$. On the way back $R = (-2, 3, 4, -5)$ comes to
# it. What does the **guided** reading pass on? A list of four numbers.
#
# <details><summary>Hint 1</summary>Guided asks two questions at each place: was $a$ positive, and
# is $R$?</details>

# %% tags=["stub"]
passed_on = None  # four numbers

# %% tags=["solution"]
passed_on = [0, 0, 4, 0]

# %% [markdown] tags=["solution"]
# Only at the third place are both positive.

# %% tags=["misconception"] shows="gated"
passed_on = [-2, 0, 4, 0]

# %% tags=["misconception"] shows="deconvnet"
passed_on = [0, 3, 4, 0]

# %% tags=["check"]
checks.check("2.1", passed_on, points=1)

# %% [markdown]
# ## 2.2 One layer back, by hand (compute, 3 points, 12 minutes)
#
# Eq. 1 puts the kernel back wherever it responded, as often as it responded. Write it with loops,
# without `conv_transpose2d`: `z` (h, w) is what the kernel answered, `kernel` is (3, 3), and the
# forward convolution padded by 1, so what comes back is (h, w) again.
#
# <details><summary>Hint 1</summary>Work on a canvas with a frame of one pixel, and cut the frame
# off in the end.</details>
# <details><summary>Hint 2</summary>For each place (y, x) of z, add `z[y, x] * kernel` to the 3x3
# square of the canvas that begins at (y, x).</details>


# %% tags=["stub"]
def one_layer_back(z, kernel):
    return None  # (h, w)


# %% tags=["solution"]
def one_layer_back(z, kernel):
    height, width = z.shape
    canvas = torch.zeros(height + 2, width + 2)
    for y in range(height):
        for x in range(width):
            canvas[y : y + 3, x : x + 3] += z[y, x] * kernel
    return canvas[1:-1, 1:-1]


# %% tags=["misconception"] shows="kernel turned"
def one_layer_back(z, kernel):
    return F.conv2d(z[None, None], kernel[None, None], padding=1)[0, 0]


# %% tags=["misconception"] shows="padding kept"
def one_layer_back(z, kernel):
    canvas = torch.zeros(len(z) + 2, len(z[0]) + 2)
    for y, x in z.nonzero().tolist():
        canvas[y : y + 3, x : x + 3] += z[y, x] * kernel
    return canvas


# %% tags=["check"]
checks.check("2.2", one_layer_back, points=3)

# %% [markdown]
# ## 2.3 Which class, and how much (compute, 2 points, 6 minutes)
#
# Eq. 4 and 5. From the responses `R` (B, N, H, W) return two tensors (B, H, W): the dominant class
# at each pixel, then its response.
#
# <details><summary>Hint 1</summary>`R.max(dim)` returns both, values first.</details>


# %% tags=["stub"]
def dominant(R):
    return None  # the classes, their response


# %% tags=["solution"]
def dominant(R):
    response, classes = R.max(1)
    return classes, response


# %% tags=["misconception"] shows="swapped"
def dominant(R):
    return R.max(1)


# %% tags=["misconception"] shows="absolute value"
def dominant(R):
    classes = R.abs().argmax(dim=1)
    return classes, torch.take_along_dim(R, classes[:, None], 1)[:, 0]


# %% tags=["check"]
checks.check("2.3", dominant, points=2)

# %% [markdown]
# ## 2.4 Evidence against a class (extend, 4 points, 20 minutes)
#
# Section 2.7: what speaks against class $c$ is what speaks for "not $c$", a class with the
# opposite kernel. So it can be had from `lib.methods.clear` and a network whose last layer is
# negated.
#
# Return the guided response (H, W) against class `c`, for a `network` whose last layer is
# `network.head`, a convolution with weights and a bias, and an image `x` (1, 1, H, W). Leave the
# network as it was.
#
# <details><summary>Hint 1</summary>`copy.deepcopy(network)` may be changed; the network itself may
# not.</details>
# <details><summary>Hint 2</summary>$z_L^c = \sum_k w_k^c f_k + b_c$. What has to be negated for
# $-z_L^c$?</details>
# <details><summary>Hint 3</summary>`clear.attentive_responses(network, x, "guided", [c])` returns
# the scores and the responses (1, 1, H, W).</details>


# %% tags=["stub"]
def evidence_against(network, x, c):
    return None  # (H, W)


# %% tags=["solution"]
def evidence_against(network, x, c):
    opposite = copy.deepcopy(network)
    opposite.head.weight.data *= -1
    opposite.head.bias.data *= -1
    _, responses = clear.attentive_responses(opposite, x, "guided", [c])
    return responses[0, 0]


# %% tags=["misconception"] shows="map negated"
def evidence_against(network, x, c):
    return -clear.attentive_responses(network, x, "guided")[1][0, c]


# %% tags=["misconception"] shows="bias forgotten"
def evidence_against(network, x, c):
    network.head.weight.data = -network.head.weight.data
    return clear.attentive_responses(network, x)[1][0, c]


# %% tags=["check"]
checks.check("2.4", evidence_against, points=4)

# %% [markdown]
# ## 2.5 With the strong pixels only, and without them (compute, 2 points, 8 minutes)
#
# Table 1's two pictures. A pixel is strong where its dominant response `D` (H, W) is positive and
# at least `t` times the map's maximum. Return the image `x` (H, W) with only the strong pixels,
# and the image without them; in both, `baseline` stands for what has been taken away.
#
# <details><summary>Hint 1</summary>`torch.where(strong, x, baseline)` is the first of the
# two.</details>


# %% tags=["stub"]
def with_and_without(x, D, t, baseline):
    return None  # only the strong, without the strong


# %% tags=["solution"]
def with_and_without(x, D, t, baseline):
    strong = (D > 0) & (D >= t * D.max())
    return torch.where(strong, x, baseline), torch.where(strong, baseline, x)


# %% tags=["misconception"] shows="absolute level"
def with_and_without(x, D, t, baseline):
    only, without = x.clone(), x.clone()
    only[D < t] = baseline
    without[D >= t] = baseline
    return only, without


# %% tags=["misconception"] shows="black"
def with_and_without(x, D, t, baseline):
    strong = (D >= t * D.max()).float()
    return x * strong, x * (1 - strong)


# %% tags=["check"]
checks.check("2.5", with_and_without, points=2)

# %%
checks.summary()

# %% [markdown]
# # Exercises to notebook 6 · CLEAR-DR, scored
#
# Four exercises on `notebooks/06_clear_dr_scored.ipynb`, sections 6.1 to 6.4. Write your answer in
# place of `None`, run the cell, then the check below it. Hints unfold one by one.
#
# The checks use small made-up maps and lesions: neither photographs nor a sequencer are needed.

# %%
import numpy as np
import torch
from scipy import ndimage
from scipy.stats import spearmanr

import checks

checks.begin("06_clear_dr_scored")

# %% [markdown]
# ## 6.1 How many times chance? (predict, 1 point, 4 minutes)
#
# A prepared photograph has 100 x 100 pixels, of which 8,000 are retina. The widened lesions cover
# 800. Of the positive response 0.3 lies inside them. How many times chance is that?
#
# <details><summary>Hint 1</summary>Chance is the share of a response that is spread evenly over
# all places at which a response can count.</details>

# %% tags=["stub"]
times_chance = None  # one number

# %% tags=["solution"]
chance = 800 / 8000
times_chance = 0.3 / chance

# %% tags=["misconception"] shows="of the frame"
times_chance = 0.3 / (800 / 100**2)

# %% tags=["misconception"] shows="difference"
times_chance = 0.3 - 0.1

# %% tags=["check"]
checks.check("6.1", times_chance, points=1)

# %% [markdown]
# ## 6.2 The share inside, with a tolerance (compute, 3 points, 12 minutes)
#
# A response rings a dark lesion. So a lesion is widened: every pixel within `tolerance` pixels of
# it counts as well. Return the share of the positive `response` (H, W) that lies in the widened
# `lesion` (H, W), True where it is.
#
# <details><summary>Hint 1</summary>`ndimage.distance_transform_edt(~lesion)` is each pixel's
# distance from the lesion.</details>
# <details><summary>Hint 2</summary>Set negative responses to 0 before you add anything
# up.</details>


# %% tags=["stub"]
def share_inside(response, lesion, tolerance):
    return None  # one number


# %% tags=["solution"]
def share_inside(response, lesion, tolerance):
    widened = ndimage.distance_transform_edt(~lesion) <= tolerance
    positive = response.clip(min=0)
    return positive[widened].sum() / positive.sum()


# %% tags=["misconception"] shows="not widened"
def share_inside(response, lesion, tolerance):
    positive = np.maximum(response, 0)
    return positive[lesion].sum() / positive.sum()


# %% tags=["misconception"] shows="square"
def share_inside(response, lesion, tolerance):
    square = np.ones((2 * tolerance + 1, 2 * tolerance + 1))
    positive = np.maximum(response, 0)
    return positive[ndimage.binary_dilation(lesion, square)].sum() / positive.sum()


# %% tags=["check"]
checks.check("6.2", share_inside, points=3)

# %% [markdown]
# ## 6.3 Take the brightest pixels away (compute, 3 points, 15 minutes)
#
# One step of deletion: of the `image` (3, H, W), the `share` of the pixels with the largest
# `response` (H, W) becomes `baseline`, in all three channels. Round their number to the nearest
# whole one, and leave the image you are given as it was.
#
# <details><summary>Hint 1</summary>`response.flatten().argsort(descending=True)` has the places,
# the largest response first.</details>
# <details><summary>Hint 2</summary>`image.clone().flatten(1)` is (3, H·W), and its columns are in
# the same order of places.</details>


# %% tags=["stub"]
def deleted(image, response, share, baseline):
    return None  # (3, H, W)


# %% tags=["solution"]
def deleted(image, response, share, baseline):
    count = round(share * response.numel())
    first = response.flatten().argsort(descending=True)[:count]
    without = image.clone().flatten(1)
    without[:, first] = baseline
    return without.view_as(image)


# %% tags=["misconception"] shows="lowest first"
def deleted(image, response, share, baseline):
    order = response.flatten().argsort()
    gone = torch.zeros(response.numel(), dtype=torch.bool)
    gone[order[: round(share * len(order))]] = True
    return torch.where(gone.view_as(response), baseline, image)


# %% tags=["misconception"] shows="share of the maximum"
def deleted(image, response, share, baseline):
    without = image.clone()
    without[:, response >= share * response.max()] = baseline
    return without


# %% tags=["check"]
checks.check("6.3", deleted, points=3)

# %% [markdown]
# ## 6.4 How alike are two maps? (extend, 3 points, 12 minutes)
#
# The sanity check compares the map of a trained network with that of a random one. Return
# Spearman's rank correlation of the positive parts of `one` and `other` (H, W), over the retina
# `where` (H, W).
#
# <details><summary>Hint 1</summary>On the black frame all maps are 0, so they are alike there
# whatever the network.</details>
# <details><summary>Hint 2</summary>`spearmanr(a, b).statistic` correlates the ranks of two lists
# of numbers.</details>


# %% tags=["stub"]
def alike(one, other, where):
    return None  # one number


# %% tags=["solution"]
def alike(one, other, where):
    a = one[where].clip(min=0)
    b = other[where].clip(min=0)
    return spearmanr(a, b).statistic


# %% tags=["misconception"] shows="whole frame"
def alike(one, other, where):
    return spearmanr(one.clip(min=0).ravel(), other.clip(min=0).ravel()).statistic


# %% tags=["misconception"] shows="not ranked"
def alike(one, other, where):
    return np.corrcoef(np.maximum(one, 0)[where], np.maximum(other, 0)[where])[0, 1]


# %% tags=["check"]
checks.check("6.4", alike, points=3)

# %%
checks.summary()

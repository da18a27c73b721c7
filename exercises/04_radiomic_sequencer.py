# %% [markdown]
# # Exercises to notebook 4 · The radiomic sequencer
#
# Four exercises on `notebooks/04_radiomic_sequencer.ipynb`, sections 4.1 to 4.3. Write your answer
# in place of `None`, run the cell, then the check below it. Hints unfold one by one.
#
# The checks use a small sequencer with random weights and one phantom: nothing has to be trained.

# %%
import numpy as np
import torch
from scipy.stats import binomtest

import checks

checks.begin("04_radiomic_sequencer")

# %% [markdown]
# ## 4.1 What one unit sees (predict, 2 points, 6 minutes)
#
# A network has a convolution of 3 pixels, a pooling of 2, a convolution of 3, a pooling of 2 and a
# convolution of 3. How many pixels wide is the square of the photograph that one unit of the last
# convolution sees?
#
# <details><summary>Hint 1</summary>A layer of k pixels widens the square by k - 1 steps.</details>
# <details><summary>Hint 2</summary>A step is 1 pixel at first, and each pooling doubles it. After
# the first pooling the square is 4 pixels wide.</details>

# %% tags=["stub"]
width = None  # pixels

# %% tags=["solution"]
width, step = 1, 1
for kernel, stride in ((3, 1), (2, 2), (3, 1), (2, 2), (3, 1)):
    width += (kernel - 1) * step
    step *= stride

# %% [markdown] tags=["solution"]
# 3, 4, 8, 10, 18.

# %% tags=["misconception"] shows="strides forgotten"
width = 1 + 2 + 1 + 2 + 1 + 2

# %% tags=["misconception"] shows="pooling sees nothing"
width = 3 + 2 * 2 + 4 * 2

# %% tags=["check"]
checks.check("4.1", width, points=2)

# %% [markdown]
# ## 4.2 Kappa from its definition (compute, 3 points, 15 minutes)
#
# Quadratic weighted kappa is $\kappa = 1 - \sum w O / \sum w E$. $O_{ij}$ is the share of the
# photographs of grade $i$ that were answered $j$, $w_{ij} = (i - j)^2$, and $E_{ij}$ is what
# $O_{ij}$ would be if answers and grades had nothing to do with each other. Write it for grades 0
# to 4, without scikit-learn: `predicted` and `true` are arrays (n,).
#
# <details><summary>Hint 1</summary>$\sum w O$ is the mean of the squared distances (predicted -
# true)².</details>
# <details><summary>Hint 2</summary>$\sum w E$ is the mean squared distance over all pairs, each
# answer with each true grade.</details>


# %% tags=["stub"]
def kappa(predicted, true):
    return None  # one number


# %% tags=["solution"]
def kappa(predicted, true):
    observed = ((predicted - true) ** 2).mean()
    by_chance = ((predicted[:, None] - true[None, :]) ** 2).mean()
    return 1 - observed / by_chance


# %% tags=["misconception"] shows="linear"
def kappa(predicted, true):
    observed = np.abs(predicted - true).mean()
    return 1 - observed / np.abs(predicted[:, None] - true).mean()


# %% tags=["misconception"] shows="unweighted"
def kappa(predicted, true):
    observed = (predicted != true).mean()
    return 1 - observed / (predicted[:, None] != true).mean()


# %% tags=["check"]
checks.check("4.2", kappa, points=3)

# %% [markdown]
# ## 4.3 Better than the commonest grade? (compute, 3 points, 12 minutes)
#
# McNemar's test. `a` and `b` (n,) say on which photographs each of two graders is right. Return
# the two-sided p of the exact test, on how many photographs only `a` is right, and on how many
# only `b`.
#
# <details><summary>Hint 1</summary>Photographs on which both are right, or both wrong, say
# nothing.</details>
# <details><summary>Hint 2</summary>`binomtest(only_a, only_a + only_b).pvalue` asks how odd such a
# share of heads would be for a fair coin.</details>


# %% tags=["stub"]
def mcnemar(a, b):
    return None  # p, only a, only b


# %% tags=["solution"]
def mcnemar(a, b):
    only_a = int((a & ~b).sum())
    only_b = int((b & ~a).sum())
    return binomtest(only_a, only_a + only_b).pvalue, only_a, only_b


# %% tags=["misconception"] shows="all right ones"
def mcnemar(a, b):
    only_a, only_b = (a & ~b).sum(), (b & ~a).sum()
    return binomtest(only_a, only_a + only_b).pvalue, a.sum(), b.sum()


# %% tags=["misconception"] shows="one-sided"
def mcnemar(a, b):
    only_a, only_b = (a & ~b).sum(), (b & ~a).sum()
    more = max(only_a, only_b)
    p = binomtest(more, only_a + only_b, alternative="greater").pvalue
    return p, only_a, only_b


# %% tags=["check"]
checks.check("4.3", mcnemar, points=3)

# %% [markdown]
# ## 4.4 Which entry made the grade? (extend, 3 points, 15 minutes)
#
# Because the last convolution is 1x1, $S_c = \sum_k w_k^c s_k + b_c$. Return what each entry of
# the radiomic sequence gives to the score of grade `c`, a tensor (K,): all of them and the bias
# add up to the score. The `network` is a `RadiomicSequencer`, the `image` is (1, 3, H, W).
#
# <details><summary>Hint 1</summary>`network.sequence(image)` is the sequence (1, K), and
# `network.head.weight` is (5, K, 1, 1).</details>


# %% tags=["stub"]
def contributions(network, image, c):
    return None  # (K,)


# %% tags=["solution"]
def contributions(network, image, c):
    with torch.no_grad():
        s = network.sequence(image)[0]
        return network.head.weight[c, :, 0, 0] * s


# %% tags=["misconception"] shows="sequence alone"
def contributions(network, image, c):
    return network.sequence(image)[0]


# %% tags=["misconception"] shows="summed"
def contributions(network, image, c):
    f = network.features(image)[0]
    return network.head.weight[c, :, 0, 0] * f.sum((1, 2))


# %% tags=["check"]
checks.check("4.4", contributions, points=3)

# %%
checks.summary()

# %% [markdown]
# # Exercises to notebook 1 · Class activation maps
#
# Five exercises on `notebooks/01_cam_imagenet.ipynb`, sections 1.1 to 1.3. Each says its kind
# (predict, compute or extend), its points and its minutes. Write your answer in place of `None`,
# run the cell, then the check below it. Hints unfold one by one; a check may be run as often as
# you like.
#
# You need no photographs and no network connection.

# %%
import torch
from scipy import ndimage

import checks

checks.begin("01_cam_imagenet")

# %% [markdown]
# ## 1.1 Two responses change places (predict, 1 point, 4 minutes)
#
# A feature map has eight places in a row. It responds with 3 at the second place and with 5 at the
# sixth, and nowhere else. Then the two change places: 5 at the second, 3 at the sixth.
#
# By how much does the *flattened* vector change, relative to its length? Predict the number before
# you compute it.
#
# <details><summary>Hint 1</summary>The change is the length of the difference of both vectors. At
# how many places do they differ, and by how much?</details>
# <details><summary>Hint 2</summary>The length of (3, 5) is √34, for the zeros add
# nothing.</details>

# %% tags=["stub"]
change = None  # one number

# %% tags=["solution"]
before = torch.tensor([0.0, 3, 0, 0, 0, 5, 0, 0])
after = torch.tensor([0.0, 5, 0, 0, 0, 3, 0, 0])
change = (after - before).norm() / before.norm()

# %% [markdown] tags=["solution"]
# Two differences of 2, so √8 over √34: 0.485. The average has not changed at all.

# %% tags=["misconception"] shows="averaged"
change = 0

# %% tags=["misconception"] shows="nothing in common"
change = 2**0.5

# %% tags=["check"]
checks.check("1.1", change, points=1)

# %% [markdown]
# ## 1.2 The map of every class (compute, 3 points, 10 minutes)
#
# Write Eq. 2, $M_c(x, y) = \sum_k w_k^c f_k(x, y)$. You get the feature maps `f` (K, h, w), the
# class weights `w` (N, K) and the biases `b` (N,) of one photograph; return the maps (N, h, w).
# Whether the biases are needed is part of the question.
#
# <details><summary>Hint 1</summary>Which of the three letters k, x, y does Eq. 2 sum
# over?</details>
# <details><summary>Hint 2</summary>`torch.einsum("ck,kxy->...", w, f)` sums over what is left out
# after the arrow.</details>


# %% tags=["stub"]
def activation_maps(f, w, b):
    return None  # the maps (N, h, w)


# %% tags=["solution"]
def activation_maps(f, w, b):
    return torch.einsum("ck,kxy->cxy", w, f)


# %% [markdown] tags=["solution"]
# The bias belongs to the score, not to a place: $S_c$ is the mean of $M_c$, plus $b_c$.


# %% tags=["misconception"] shows="bias added"
def activation_maps(f, w, b):
    maps = [(w[c, :, None, None] * f).sum(0) + b[c] for c in range(len(w))]
    return torch.stack(maps)


# %% tags=["misconception"] shows="averaged over maps"
def activation_maps(f, w, b):
    return (w[:, :, None, None] * f).mean(1)


# %% tags=["misconception"] shows="upside down"
def activation_maps(f, w, b):
    return torch.einsum("ck,kxy->cxy", w, torch.flipud(f.permute(1, 2, 0)).permute(2, 0, 1))


# %% tags=["check"]
checks.check("1.2", activation_maps, points=3)

# %% [markdown]
# ## 1.3 A box from a map (compute, 3 points, 12 minutes)
#
# Section 3.2 of the paper: everything above a `share` of the map's maximum, and of that the
# largest connected part, gets a box. Return its corners `(x0, y0, x1, y1)` in pixels, `x1` and
# `y1` exclusive, of a map `m` (h, w), a tensor.
#
# <details><summary>Hint 1</summary>`ndimage.label(above)` gives each connected part a number, from
# 1 on; `ndimage.find_objects(parts)` gives the slices of each.</details>
# <details><summary>Hint 2</summary>The largest part has the most pixels, not the largest
# value.</details>


# %% tags=["stub"]
def box(m, share):
    return None  # (x0, y0, x1, y1)


# %% tags=["solution"]
def box(m, share):
    parts, count = ndimage.label((m > share * m.max()).numpy())
    sizes = [(parts == number).sum() for number in range(1, count + 1)]
    largest = sizes.index(max(sizes))
    rows, columns = ndimage.find_objects(parts)[largest]
    return columns.start, rows.start, columns.stop, rows.stop


# %% tags=["misconception"] shows="all parts"
def box(m, share):
    y, x = torch.nonzero(m > share * m.max()).T
    return x.min(), y.min(), x.max() + 1, y.max() + 1


# %% tags=["misconception"] shows="rows first"
def box(m, share):
    parts, _ = ndimage.label((m > share * m.max()).numpy())
    rows, columns = max(ndimage.find_objects(parts), key=lambda part: m[part].numel())
    return rows.start, columns.start, rows.stop, columns.stop


# %% tags=["check"]
checks.check("1.3", box, points=3)

# %% [markdown]
# ## 1.4 A ReLU before the average (predict, 1 point, 3 minutes)
#
# SqueezeNet puts a ReLU between its last convolution and the average. At four places the evidence
# for a class, $M_c + b_c$, is
#
# $$\begin{pmatrix} 4 & -2 \\ 0 & 2 \end{pmatrix}$$
#
# What is the score $S_c$?
#
# <details><summary>Hint 1</summary>A ReLU makes negative numbers 0. How many places are there
# afterwards?</details>

# %% tags=["stub"]
score = None  # one number

# %% tags=["solution"]
score = torch.tensor([[4.0, -2], [0, 2]]).clamp(min=0).mean()

# %% [markdown] tags=["solution"]
# (4 + 0 + 0 + 2) / 4 = 1.5. The mean of $M_c + b_c$ itself is 1, a lower bound of it.

# %% tags=["misconception"] shows="no ReLU"
score = 1

# %% tags=["misconception"] shows="summed"
score = 6

# %% tags=["check"]
checks.check("1.4", score, points=1)

# %% [markdown]
# ## 1.5 What a probability does not see (extend, 3 points, 15 minutes)
#
# Add the same constant $a_k$ to all $w_k^c$, whatever the class. Every map $M_c$ changes, by
# $\sum_k a_k f_k(x, y)$, and no probability does. So the sign of a map means little by itself.
#
# Write `centred`: from the maps `M` (N, h, w) of all classes it makes maps that such a constant
# does not change, whose means still differ from class to class by as much as the scores do without
# their biases, and whose sum over the classes is 0 at each place.
#
# <details><summary>Hint 1</summary>What the constant adds is the same for all classes, but differs
# from place to place.</details>
# <details><summary>Hint 2</summary>What is the same for all classes is also in their
# mean.</details>


# %% tags=["stub"]
def centred(M):
    return None  # (N, h, w)


# %% tags=["solution"]
def centred(M):
    return M - M.mean(0, keepdim=True)


# %% [markdown] tags=["solution"]
# The constant adds $\sum_k a_k f_k(x, y)$ to each of the N maps, so it adds the same to their
# mean.


# %% tags=["misconception"] shows="over places"
def centred(M):
    return torch.stack([m - m.mean() for m in M])


# %% tags=["misconception"] shows="softmax"
def centred(M):
    return M.exp() / M.exp().sum(0)


# %% tags=["check"]
checks.check("1.5", centred, points=3)

# %%
checks.summary()
